"""Times every kernel of a device beside the reference and the plain PyTorch expression.

    python ci/bench/kernels.py [--device cpu] [--ops attention,rms_norm] [--phases both] [--json] ...

All candidates of an op run in turns within one process, so that a busy machine slows all of them alike; what is
printed are medians and ratios of medians. Two yardsticks are measured in the same run: how fast memory is copied and
how fast a matrix product runs. ``python ci/bench/kernels.py --help`` lists the shapes one can set.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import peers
import torch
from case import Case, Maker, Shapes
from clocks import clock_of, copy_rate, product_rate
from kernel_cases import CASES
from measuring import PHASES, Candidate, measure, usable_kernels

from evocore.ops.kernel import Kernel
from evocore.plugins.manager import load_plugins

COPY_BYTES = {"cpu": 2**23}  # as large as the activations below; a device's memory is far larger
PRODUCT_SIZE = {"cpu": 512}


def main() -> None:
    options = parse()
    device, dtype, offers = torch.device(options.device), getattr(torch, options.dtype), load_plugins().kernels()
    clock = clock_of(device)
    for threads in options.threads:
        torch.set_num_threads(threads)
        copy = copy_rate(device, clock, COPY_BYTES.get(device.type, 2**30))
        product = product_rate(device, clock, dtype, PRODUCT_SIZE.get(device.type, 8192))
        if not options.json:
            print(f"\ntorch {torch.__version__}, {device}, {threads} thread(s), {options.dtype}; {options.shapes}")
            print(f"copy {copy / 1e9:.1f} GB/s (read + written), matrix product {product / 1e9:.0f} GFLOP/s\n")
            print(f"{'op':<24}{'phase':<10}{'provider':<12}{'ms':>9}{'reference':>11}{'plain':>9}   of the yardstick")
        for name, make in CASES.items():
            if options.ops and name.split(" ")[0] not in options.ops and name not in options.ops:
                continue
            case = make(Maker(options.shapes, dtype, device))
            rows = measure(
                case, candidates(case, offers, device), device, clock, phases=options.phases, seconds=options.seconds
            )
            show(name, case, rows, copy, product, options.json)


def candidates(case: Case, offers: Iterable[Kernel], device: torch.device) -> list[Candidate]:
    """The plain expression and every kernel that can serve."""
    usable, _ = usable_kernels(case, offers, device.type)
    kernels = [Candidate(label, kernel.load(), "kernel") for label, kernel in usable.items()]
    return [peers.plain(case), *kernels]


def show(name: str, case: Case, rows: list[dict[str, Any]], copy: float, product: float, as_json: bool) -> None:
    """Print one line for each provider of the case's op, the fastest first."""
    for phase in dict.fromkeys(row["phase"] for row in rows):
        mine = [row for row in rows if row["phase"] == phase]
        times = {row["provider"]: row["seconds"] for row in mine if "seconds" in row}
        for row in sorted(mine, key=lambda row: row.get("seconds", float("inf"))):
            if as_json:
                print(json.dumps({"case": name, "copy": copy, "product": product, **row}))
                continue
            line = f"{name:<24}{phase:<10}{row['provider']:<12}"
            if "seconds" not in row:
                print(f"{line}   {row['error']}")
                continue
            line += f"{row['seconds'] * 1e3:>9.2f}"
            for base in ("reference", "plain"):
                ratio = f"{times[base] / row['seconds']:.2f}x" if base in times else "-"
                line += f"{ratio:>{11 if base == 'reference' else 9}}"
            if case.cost(phase).flops:
                line += f"   {row['flops_per_second'] / product:>4.0%} of the product"
            else:
                line += f"   {row['bytes_per_second'] / copy:>4.0%} of the copy"
            print(line)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in Shapes._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--device", default="cpu", help="as PyTorch names it")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16", "float16"])
    parser.add_argument("--threads", type=integers, default=[1], help="e.g. 1,2")
    parser.add_argument("--ops", type=words, default=[], help="e.g. attention,rms_norm")
    parser.add_argument("--phases", type=words, default=["both"], help=f"of {', '.join(PHASES)}")
    parser.add_argument("--seconds", type=float, default=0.8, help="time for each op")
    parser.add_argument("--json", action="store_true", help="one line of JSON per row")
    options = parser.parse_args()
    options.shapes = Shapes(*(getattr(options, name) for name in Shapes._fields))
    return options


def words(text: str) -> list[str]:
    return text.split(",")


def integers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
