"""Times every kernel of a device, and its named peers, on the shapes of real models; writes one JSON file.

    python ci/gpu/bench_kernels.py --out FILE [--device TYPE] [--seconds 200] [--tiny]

Whatever the registry offers for the device takes part, so that a new provider appears by itself. The file is written
after each case: a run that is cut short leaves what it has. A kernel that breaks the device costs its own row only:
this process starts itself again behind it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))

import peers  # noqa: E402
from case import Case, Maker, Shapes  # noqa: E402
from clocks import Clock, clock_of, copy_rate, product_rate, told  # noqa: E402
from kernel_cases import CASES  # noqa: E402
from measuring import (  # noqa: E402
    PHASES,
    BrokenDeviceError,
    Candidate,
    answers,
    measure,
    usable_kernels,
)

from evocore.ops.kernel import Kernel  # noqa: E402
from evocore.plugins.manager import load_plugins  # noqa: E402

COPY_BYTES, PRODUCT_SIZE = 2**30, 8192
BOTH = ("both",)


@dataclass(frozen=True)
class Entry:
    """A case of ``kernel_cases`` at certain shapes; ``title`` is what the report calls it."""

    title: str
    case: str
    shapes: dict[str, int]
    phases: tuple[str, ...] = PHASES
    peers: tuple[str, ...] = ()


def _norm(op: str, width: int, *peers: str) -> Entry:
    tokens = 2**27 // width  # 256 MiB of bfloat16
    return Entry(f"{op} {width}", op, {"tokens": tokens, "hidden": width}, peers=peers)


def _attention(title: str, case: str = "attention", **shapes: int) -> Entry:
    sizes = {"tokens": 16384, "heads": 16, "kv_heads": 16, "head_dim": 128, "document": 8192}
    return Entry(f"attention {title}", case, sizes | shapes, peers=("sdpa",))


_ROTARY = {"tokens": 16384, "heads": 32, "head_dim": 128}
_GLU = {"tokens": 8192, "ffn": 14336}
_MOE = {"tokens": 16384, "hidden": 4096, "experts": 8, "top_k": 2}

# What the targets need comes first: whatever does not fit the time is left out at the end.
ENTRIES = [
    _norm("rms_norm", 2048, "liger", "compile"),
    _norm("rms_norm", 4096, "liger", "compile"),
    _norm("rms_norm", 8192, "liger", "compile"),
    Entry("rotary half", "rotary", _ROTARY, peers=("liger", "compile")),
    Entry("rotary interleaved", "rotary interleaved", _ROTARY, peers=("compile",)),
    Entry("swiglu", "swiglu", _GLU, peers=("liger", "compile")),
    Entry("cross_entropy 128K", "cross_entropy", {"tokens": 8192, "vocab": 131072}, BOTH, ("liger", "compile")),
    Entry(
        "linear_cross_entropy 128K",
        "linear_cross_entropy",
        {"tokens": 16384, "hidden": 2048, "vocab": 131072},
        BOTH,
        ("liger",),
    ),
    _attention("8K"),
    Entry(
        "grouped_linear 8 experts",
        "grouped_linear",
        {"tokens": 16384, "hidden": 4096, "ffn": 14336, "experts": 8},
        peers=("dense",),
    ),
    _norm("add_rms_norm", 2048, "liger"),
    _norm("add_rms_norm", 4096, "liger", "compile"),
    _norm("add_rms_norm", 8192, "liger"),
    _attention("8K grouped queries", heads=32, kv_heads=8),
    _attention("4K", document=4096),
    _attention("2K", document=2048),
    _attention("8K head 64", heads=32, kv_heads=32, head_dim=64),
    _attention("ragged", case="attention ragged"),
    Entry("adamw", "adamw", {"hidden": 4096, "ffn": 14336, "vocab": 16384}, peers=("fused_adamw",)),
    Entry("moe_permute", "moe_permute", _MOE),
    Entry("moe_unpermute", "moe_unpermute", _MOE),
    Entry(
        "grouped_linear 64 experts",
        "grouped_linear",
        {"tokens": 32768, "hidden": 2048, "ffn": 1408, "experts": 64},
        peers=("dense",),
    ),
    Entry("geglu", "geglu", _GLU, peers=("liger", "compile")),
    _norm("layer_norm", 4096, "liger"),
]

TINY = {"tokens": 32, "hidden": 64, "ffn": 64, "vocab": 64, "heads": 2, "kv_heads": 2, "head_dim": 16, "document": 16}
TINY_EXPERTS = 4


def tiny(entry: Entry) -> Entry:
    """The same case and peers in sizes that an interpreter gets through."""
    shapes = {name: min(size, TINY.get(name, TINY_EXPERTS)) for name, size in entry.shapes.items()}
    if "kv_heads" in shapes and entry.shapes["kv_heads"] < entry.shapes["heads"]:
        shapes["kv_heads"] = 1
    return Entry(entry.title, entry.case, shapes, entry.phases, entry.peers)


@dataclass
class Results:
    """What stands in the file: yardsticks, cases by title, and candidates that broke the device."""

    path: Path
    device: str
    dtype: str
    yardsticks: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: list[dict[str, str]] = field(default_factory=list)
    elapsed: float = 0.0

    @classmethod
    def resume(cls, path: Path) -> Results:
        return cls(path, **json.loads(path.read_text()))

    def save(self, elapsed: float) -> None:
        self.elapsed = elapsed
        content = {name: value for name, value in vars(self).items() if name != "path"}
        prepared = self.path.with_suffix(".partial")
        prepared.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(prepared, self.path)


def main() -> None:
    options = parse()
    device, dtype = torch.device(options.device), torch.float32 if options.tiny else torch.bfloat16
    results = (
        Results.resume(options.out)
        if options.resume
        else Results(options.out, device.type, str(dtype).removeprefix("torch."))
    )
    start = time.monotonic() - results.elapsed
    clock, offers = clock_of(device), load_plugins().kernels()
    compiler = "eager" if options.tiny else "inductor"
    if not results.yardsticks:
        results.yardsticks["first"] = yardsticks(device, clock, dtype, options.tiny)
        results.save(time.monotonic() - start)
    for entry in ENTRIES:
        if entry.title in results.cases or (options.only and entry.case.split(" ")[0] not in options.only):
            continue
        if time.monotonic() - start > options.seconds:
            results.cases[entry.title] = {"left_out": f"{options.seconds:.0f} s were used up"}
            continue
        sized = tiny(entry) if options.tiny else entry
        broken = {item["provider"]: item["error"] for item in results.broken if item["case"] == entry.title}
        try:
            results.cases[entry.title] = run(
                sized, offers, device, clock, dtype, broken, options.case_seconds, compiler
            )
        except BrokenDeviceError as failure:
            results.broken.append({"case": entry.title, "provider": failure.candidate, "error": failure.cause})
            results.save(time.monotonic() - start)
            start_again()
        except Exception as error:  # noqa: BLE001 - too little memory for the inputs, a failure nobody owns up to
            results.cases[entry.title] = {"left_out": told(error)}
            del error
            if not answers(device):
                results.save(time.monotonic() - start)
                start_again()
        results.save(time.monotonic() - start)
        print(f"{time.monotonic() - start:6.1f} s  {entry.title}", file=sys.stderr, flush=True)
    results.yardsticks["last"] = yardsticks(device, clock, dtype, options.tiny)
    results.save(time.monotonic() - start)


def start_again() -> None:
    """Replace this process by one that goes on behind what broke."""
    sys.stderr.flush()
    arguments = [word for word in sys.argv if word != "--resume"]
    os.execv(sys.executable, [sys.executable, *arguments, "--resume"])


def run(
    entry: Entry,
    offers: list[Kernel],
    device: torch.device,
    clock: Clock,
    dtype: torch.dtype,
    broken: dict[str, str],
    seconds: float,
    compiler: str,
) -> dict[str, Any]:
    """Measure one entry; its inputs are freed when this returns."""
    shapes = Shapes()._replace(**entry.shapes)
    case = CASES[entry.case](Maker(shapes, dtype, device))
    kernels, refused = usable_kernels(case, offers, device.type)
    candidates, missing = gather(entry, case, kernels, compiler)
    missing |= broken
    tried = [candidate for candidate in candidates if candidate.name not in broken]
    return {
        "op": case.request.op,
        "request": str(case.request),
        "shapes": entry.shapes,
        "chosen": next(iter(kernels), None),
        "refused": refused,
        "missing": missing,
        "ideal": {phase: case.cost(phase)._asdict() for phase in PHASES},
        "rows": measure(case, tried, device, clock, phases=entry.phases, seconds=seconds),
    }


def gather(
    entry: Entry, case: Case, kernels: dict[str, Kernel], compiler: str
) -> tuple[list[Candidate], dict[str, str]]:
    """All that take part in an entry, and why others do not. The plain expression is first: it is what is right."""
    makers: dict[str, Callable[[Case], Candidate | list[Candidate]]] = {
        "liger": peers.liger,
        "compile": lambda case: peers.compiled(case, compiler),
        "sdpa": peers.sdpa,
        "dense": peers.dense_product,
        "fused_adamw": peers.fused_adamw,
    }
    found, missing = [peers.plain(case)], {}
    for label, kernel in kernels.items():
        try:
            found.append(Candidate(label, kernel.load(), "kernel"))
        except Exception as error:  # noqa: BLE001 - a stranger's import can raise anything; it becomes a row
            missing[label] = told(error)
    for name in entry.peers:
        try:
            made = makers[name](case)
        except Exception as error:  # noqa: BLE001 - likewise
            missing[name] = str(error) if isinstance(error, LookupError) else told(error)
        else:
            found += made if isinstance(made, list) else [made]
    return found, missing


def yardsticks(device: torch.device, clock: Clock, dtype: torch.dtype, tiny: bool) -> dict[str, float]:
    """Bytes per second of a copy, FLOP per second of a product."""
    nbytes, size = (2**20, 128) if tiny else (COPY_BYTES, PRODUCT_SIZE)
    return {
        "copy_bytes_per_second": copy_rate(device, clock, nbytes),
        "product_flops_per_second": product_rate(device, clock, dtype, size),
        "copy_bytes": nbytes,
        "product_size": size,
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--device", default="cpu", help="as PyTorch names it")
    parser.add_argument("--seconds", type=float, default=200.0, help="start no case after so long")
    parser.add_argument("--case-seconds", type=float, default=1.0, help="time for the repetitions of each case")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="ops, e.g. attention,rms_norm")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in float32, to try the program")
    parser.add_argument("--resume", action="store_true", help="go on with the file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
