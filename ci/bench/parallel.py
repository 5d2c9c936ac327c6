"""How the parallel runtime compares with no runtime and with PyTorch's own, on two processes of one machine.

    python ci/bench/parallel.py [--quick] [--only PART,PART] [--rounds 4] [--tokens 512] [--json FILE]

Parts, each with its candidates in one run and in turns, so that a busy machine slows all of them alike:

- ``overhead``: a step of ZeRO over all ranks without overlap, minus the same compute by hand on all ranks at once
  (forward, backward, clip, AdamW for as many parameters as a rank owns), minus the same exchanges one by one.
- ``zero``: ZeRO with overlap of gradients and parameters, DistributedDataParallel, fully_shard of each block.
- ``memory``: of the same three, each in processes of its own: what training adds to the peak, and what formulas say.
  Where the peak is the resident set, it moves by some MiB with the allocator, so it is a median over rounds, too.
- ``isp``, ``isp-sequence``: how long gathers of weights hold up the computing thread, ahead of use and at once; the
  second part splits sequences, too.
- ``alone``: the runtime in one process, and a loop by hand with the same kernels.

Ratios are medians over rounds of ratios within a round, seconds are those of the slowest rank. Nothing is asserted:
the table says which targets are met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from parallel_figures import Figure, Medians, add_parts_option
from parallel_measures import Turns, alone, gathered_weights, overhead, peak_memory, zero
from parallel_trainings import PEERS, TINY, Sizes, backend_named

from evocore.testing.distributed import RankPool

WORLD = 2
TIMEOUT = 900.0
PRELOAD = ("evocore.training.step", "torch._dynamo", "torch.distributed.fsdp", "torch.nn.parallel")
AGREEMENT = 1e-3
"""How far losses of candidates may be apart, relatively, after the same steps."""


@dataclass(frozen=True)
class Run:
    """What the parts share."""

    sizes: Sizes
    turns: Turns
    process_group_backend: str

    def pool(self, function: Callable[..., Any], *args: Any, world: int = WORLD) -> list[Any]:
        """What each of new processes returns."""
        with RankPool(world, backend=self.process_group_backend, preload=PRELOAD) as pool:
            return pool.run(function, *args, timeout=TIMEOUT)


@dataclass(frozen=True)
class Part:
    """The figures of a part and what they come from."""

    figures: list[Figure]
    medians: Medians | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        timed = {} if self.medians is None else vars(self.medians)
        return {"figures": [asdict(one) | {"met": one.met} for one in self.figures], **timed, **self.facts}


def of_overhead(run: Run) -> Part:
    ranks = run.pool(overhead, run.sizes, run.turns)
    medians = Medians([rank["timed"] for rank in ranks])

    def rest(times: dict[str, list[float]]) -> float:
        return medians.median(
            lambda step, compute, exchanges: (step - compute - exchanges) / step,
            *(times[name] for name in ("step", "compute", "exchanges")),
        )

    figures = [
        *medians.steps("overhead"),
        Figure("overhead: neither compute nor exchanges, share of a step", rest(medians.seconds), "%", 0.05),
        Figure("overhead: the same in processor time", rest(medians.processor), "%"),
    ]
    facts = {"parameters": ranks[0]["parameters"], "exchanges": ranks[0]["exchanges"]}
    return Part(figures, medians, facts)


def of_zero(run: Run) -> Part:
    medians = Medians([rank["timed"] for rank in run.pool(zero, run.sizes, run.turns)])
    figures = [
        *medians.steps("zero"),
        Figure("zero: step of DDP / evocore", medians.ratio("DDP", "evocore"), "x", 1.0, at_most=False),
        Figure("zero: step of FSDP2 / evocore", medians.ratio("FSDP2", "evocore"), "x", 1.25, at_most=False),
        Figure("zero: processor time of DDP / evocore", medians.ratio_of_processor_time("DDP", "evocore"), "x"),
        Figure("zero: losses of the three, relative difference", medians.disagreement(), "%", AGREEMENT),
    ]
    return Part(figures, medians)


def of_memory(run: Run) -> Part:
    found = {}
    for name in ("evocore", *PEERS):
        trials = [run.pool(peak_memory, run.sizes, name) for _ in range(run.turns.rounds)]
        found[name] = {
            what: statistics.median(max(rank[what] for rank in ranks) for ranks in trials)
            for what in ("peak", "held")
        }
    figures = [
        Figure(f"memory: {name}, {text}", bytes_of[what], "MiB")
        for name, bytes_of in found.items()
        for what, text in (("held", "held all the time by formula"), ("peak", "peak"))
    ]
    saved = {what: found["DDP"][what] - found["evocore"][what] for what in ("held", "peak")}
    figures.append(Figure("memory: less than DDP by formula", saved["held"], "MiB"))
    figures.append(Figure("memory: less than DDP at the peak", saved["peak"], "MiB", saved["held"], at_most=False))
    return Part(figures, facts=found)


def of_gathers(run: Run, name: str, sequence: int) -> Part:
    medians = Medians([rank["timed"] for rank in run.pool(gathered_weights, run.sizes, run.turns, sequence)])
    blocked = medians.blocked
    hidden = medians.median(lambda ahead, at_once: 1 - ahead / at_once, blocked["ahead"], blocked["at once"])
    figures = [
        *medians.steps(name),
        *(Figure(f"{name}: {key}, blocked by gathers", statistics.median(blocked[key]), "ms") for key in blocked),
        Figure(f"{name}: gathers hidden by overlap", hidden, "%", 0.7, at_most=False),
        Figure(f"{name}: losses of both, relative difference", medians.disagreement(), "%", AGREEMENT),
    ]
    return Part(figures, medians)


def of_alone(run: Run) -> Part:
    medians = Medians([rank["timed"] for rank in run.pool(alone, run.sizes, run.turns, world=1)])
    figures = [
        *medians.steps("alone"),
        Figure("alone: runtime over a loop by hand, longer by", medians.ratio("evocore", "by hand") - 1, "%", 0.01),
        Figure("alone: the same in processor time", medians.ratio_of_processor_time("evocore", "by hand") - 1, "%"),
        Figure("alone: losses of both, relative difference", medians.disagreement(), "%", AGREEMENT),
    ]
    return Part(figures, medians)


PARTS: dict[str, Callable[[Run], Part]] = {
    "overhead": of_overhead,
    "zero": of_zero,
    "memory": of_memory,
    "isp": lambda run: of_gathers(run, "isp", 1),
    "isp-sequence": lambda run: of_gathers(run, "isp-sequence", WORLD),
    "alone": of_alone,
}


def main() -> None:
    options = parse()
    given = {name: getattr(options, name) for name in ("hidden", "layers", "vocab", "tokens")}
    sizes = replace(
        TINY if options.quick else Sizes(),
        backend=options.backend,
        dtype=options.dtype,
        **{name: value for name, value in given.items() if value is not None},
    )
    turns = Turns(rounds=1, steps=1) if options.quick else Turns(options.rounds, options.steps)
    backend = backend_named(options.backend)
    run = Run(sizes, turns, backend.process_group_backend)
    result: dict[str, Any] = {
        "settings": asdict(sizes) | asdict(turns) | {"world": WORLD, "quick": options.quick},
        "environment": {
            "torch": torch.__version__,
            "device": backend.device_name(backend.device()),
            "cores": len(os.sched_getaffinity(0)),
        },
        "parts": {},
    }
    print(f"{'figure':66} {'found':>10}  {'target':12} verdict", flush=True)
    for name in options.only:
        before = os.getloadavg()[0]
        part = PARTS[name](run)
        for figure in part.figures:
            print(figure.line(), flush=True)
        result["parts"][name] = part.plain() | {"load": [before, os.getloadavg()[0]]}
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round, to try the program")
    add_parts_option(parser, PARTS)
    parser.add_argument("--rounds", type=int, default=4, help="turns of each candidate")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a turn")
    for name in ("hidden", "layers", "vocab", "tokens"):
        parser.add_argument(f"--{name}", type=int, help=f"default {getattr(Sizes(), name)}")
    parser.add_argument("--backend", default="cpu", help="evocore's name of the device")
    parser.add_argument(
        "--dtype", default="float32", help="of weights and activations; other than float32 only for the part alone"
    )
    parser.add_argument("--json", type=Path, help="write all figures and what they come from to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
