"""How the pipeline engine compares with PyTorch's and with what its schedules promise, on processes of one machine.

    python ci/bench/pipeline.py [--quick] [--only PART,PART] [--rounds 8] [--json FILE]

Parts:

- ``pytorch``: a step of 1F1B and of the interleaved schedule on 2 and 4 processes, by both engines in turns.
- ``idle``: on 2 processes, the share of a step in which stages compute nothing, beside what the schedule would leave
  if each action took as long as it did and messages took no time. Chunks are deep here, as those of large models are:
  a message is copied by the cores that compute, and must not weigh more than it would beside a device. Micro-batches
  are few, so that there is an idle time to measure.
- ``simulated``: a step of each schedule on 4 stages, simulated from the processor time that its actions took on 4
  processes.

Neither engine updates weights. Ratios are medians; nothing is asserted: the table says which targets are met.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from parallel_figures import Figure, Medians, add_parts_option
from parallel_measures import Turns
from parallel_trainings import HEAD_DIM, Sizes, backend_named
from pipeline_measures import PYTORCHS, Watched, against_pytorch, chunks_of, schedule_of, watched

from evocore.parallel.pipeline.checking import bubble, timeline
from evocore.parallel.pipeline.schedules import SCHEDULES, Action
from evocore.testing.distributed import RankPool

SIZES = Sizes(hidden=6 * HEAD_DIM, layers=8, vocab=1024, tokens=256, document=64, micro_batches=8)
DEEP = replace(SIZES, hidden=12 * HEAD_DIM, layers=32, tokens=128, document=32, micro_batches=4)
TINY = replace(SIZES, hidden=HEAD_DIM, vocab=64, tokens=32, document=16)
TIMEOUT = 900.0
PRELOAD = ("evocore.training.step", "torch.distributed.pipelining")


def on(world: int, function: Callable[..., Any], sizes: Sizes, turns: Turns, name: str, **options: Any) -> list[Any]:
    """What each of ``world`` new processes returns."""
    sizes = replace(sizes, chunks=chunks_of(name) if name != "ZBV" else 1)  # a V implies its chunks
    with RankPool(world, backend=backend_named(sizes.backend).process_group_backend, preload=PRELOAD) as pool:
        return pool.run(function, sizes, turns, name, timeout=TIMEOUT, **options)


def of_pytorch(sizes: Sizes, turns: Turns) -> list[Figure]:
    figures = []
    for world in (2, 4):
        for name in PYTORCHS:
            medians = Medians(on(world, against_pytorch, sizes, turns, name))
            part = f"{name} on {world}"
            figures += [
                *medians.steps(part),
                Figure(f"{part}: step of PyTorch / evocore", medians.ratio("PyTorch", "evocore"), "x", 1.0, False),
                Figure(f"{part}: losses of both, relative difference", medians.disagreement(), "%", 1e-5),
            ]
    return figures


def of_idle(sizes: Sizes, turns: Turns) -> list[Figure]:
    figures = []
    for name in SCHEDULES:
        ranks: list[list[Watched]] = on(2, watched, sizes, turns, name, processor=False)
        steps = [_idle(name, list(step)) for step in zip(*ranks, strict=True)]
        found, promised = (statistics.median(values) for values in zip(*steps, strict=True))
        figures += [
            Figure(f"idle: {name}, share of a step, by its schedule", promised, "%"),
            Figure(f"idle: {name}, share of a step, found", found, "%", 1.1 * promised),
        ]
    return figures


def _idle(name: str, ranks: list[Watched]) -> tuple[float, float]:
    """Shares of both stages' time, as found and as simulated."""
    schedule = schedule_of(name, len(ranks))
    seconds = {action: lasted for rank in ranks for action, lasted in rank.seconds.items()}
    micro_batches = 1 + max(action.micro for action in seconds)
    timed = timeline(schedule, schedule.tables(micro_batches), seconds.__getitem__)
    span = max(rank.end for rank in ranks) - min(rank.begin for rank in ranks)
    return 1 - sum(seconds.values()) / span / len(ranks), bubble(timed, len(ranks))


def of_simulated(sizes: Sizes, turns: Turns) -> list[Figure]:
    spans = {}
    for name in SCHEDULES:
        ranks: list[list[Watched]] = on(4, watched, sizes, turns, name, processor=True)
        seconds = {action: lasted for rank in ranks for action, lasted in _medians(rank).items()}
        schedule = schedule_of(name, 4)
        timed = timeline(schedule, schedule.tables(sizes.micro_batches), seconds.__getitem__)
        spans[name] = max(one.end for one in timed), sum(seconds.values()), bubble(timed, 4)
    figures = []
    for name, (span, work, idle) in spans.items():
        figures += [
            Figure(f"simulated: {name}, a step of 4 stages", span, "ms"),
            Figure(f"simulated: {name}, work of a stage", work / 4, "ms"),
            Figure(f"simulated: {name}, idle", idle, "%"),
        ]
    for name in ("ZBH1", "ZBV"):
        figures.append(Figure(f"simulated: {name} / 1F1B", spans[name][0] / spans["1F1B"][0], "x", 0.999))
    return figures


def _medians(steps: list[Watched]) -> dict[Action, float]:
    """Of each action over the steps, and then over the micro-batches of its chunk."""
    of_kind: dict[tuple[str, int], list[float]] = {}
    for step in steps:
        for action, lasted in step.seconds.items():
            of_kind.setdefault((action.kind, action.chunk), []).append(lasted)
    return {action: statistics.median(of_kind[action.kind, action.chunk]) for action in steps[0].seconds}


PARTS: dict[str, tuple[Callable[[Sizes, Turns], list[Figure]], Sizes]] = {
    "pytorch": (of_pytorch, SIZES),
    "idle": (of_idle, DEEP),
    "simulated": (of_simulated, SIZES),
}


def main() -> None:
    options = parse()
    turns = Turns(rounds=1, steps=1) if options.quick else Turns(options.rounds, steps=2)
    result: dict[str, Any] = {
        "settings": asdict(turns) | {"quick": options.quick},
        "environment": {"torch": torch.__version__, "cores": len(os.sched_getaffinity(0))},
        "parts": {},
    }
    print(f"{'figure':66} {'found':>10}  {'target':12} verdict", flush=True)
    for name in options.only:
        before = os.getloadavg()[0]
        function, sizes = PARTS[name]
        sizes = replace(TINY if options.quick else sizes, backend=options.backend)
        figures = function(sizes, turns)
        for figure in figures:
            print(figure.line(), flush=True)
        plain = [asdict(one) | {"met": one.met} for one in figures]
        result["parts"][name] = {"sizes": asdict(sizes), "figures": plain, "load": [before, os.getloadavg()[0]]}
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and one round, to try the program")
    add_parts_option(parser, PARTS)
    parser.add_argument("--rounds", type=int, default=8, help="turns of each candidate, of two steps")
    parser.add_argument("--backend", default="cpu", help="evocore's name of the device")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
