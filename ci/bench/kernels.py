"""Times every kernel of the CPU, forward and backward, beside the reference and the plain PyTorch expression.

All candidates of an op run in turns within one process, so that a busy machine slows all of them alike; what is
printed are medians and ratios of medians. Two yardsticks are measured in the same run: how fast memory is copied and
how fast a matrix product runs. ``python ci/bench/kernels.py --help`` lists the shapes one can set.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from kernel_cases import CASES, Case, Shapes

from evocore.backends.cpu.kernels import KERNELS


def main() -> None:
    options = parse()
    dtype = getattr(torch, options.dtype)
    for threads in options.threads:
        torch.set_num_threads(threads)
        copy, product = copy_rate(), product_rate(dtype)
        print(f"\ntorch {torch.__version__}, {threads} thread(s), {options.dtype}; {options.shapes}")
        print(f"copy {copy / 1e9:.1f} GB/s (read + written), matrix product {product / 1e9:.0f} GFLOP/s\n")
        print(f"{'op':<24}{'provider':<12}{'ms':>9}{'reference':>11}{'plain':>9}   of the yardstick")
        for name, make in CASES.items():
            if not options.ops or name.split(" ")[0] in options.ops or name in options.ops:
                report(name, make(options.shapes, dtype), copy, product, options.seconds)


def report(name: str, case: Case, copy: float, product: float, seconds: float) -> None:
    """Print one line for each provider of the case's op."""
    candidates: dict[str, Callable[..., object]] = {}
    for kernel in KERNELS:
        if kernel.op == case.request.op and kernel.why_not(case.request, "cpu") is None:
            candidates[kernel.provider] = kernel.load()
    times = medians({label: case.step(function) for label, function in candidates.items()} | plain(case), seconds)
    for label, taken in sorted(times.items(), key=lambda item: item[1]):
        line = f"{name:<24}{label:<12}{taken * 1e3:>9.2f}{times['reference'] / taken:>10.2f}x"
        line += f"{times['plain'] / taken:>8.2f}x"
        if case.flops:
            line += f"   {case.flops / taken / product:>4.0%} of the product"
        elif case.bytes:
            line += f"   {case.bytes / taken / copy:>4.0%} of the copy"
        print(line)


def plain(case: Case) -> dict[str, Callable[[], object]]:
    return {"plain": case.plain if case.plain_steps_itself else case.step(case.plain)}


def medians(steps: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Seconds of each step: all in turns until the time is used up, and at least three times each."""
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {label: [] for label in steps}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken["reference"]) < 3:
        for label, step in steps.items():
            start = time.perf_counter()
            step()
            taken[label].append(time.perf_counter() - start)
    return {label: statistics.median(values) for label, values in taken.items()}


def copy_rate() -> float:
    """Bytes per second, read and written, of an 8 MB copy: as large as the activations below."""
    source, target = torch.ones(2**21), torch.empty(2**21)
    return 2 * source.nbytes / best(lambda: target.copy_(source))


def product_rate(dtype: torch.dtype) -> float:
    """FLOP per second of a 512 x 512 x 512 product."""
    a = torch.ones(512, 512, dtype=dtype)
    return 2 * 512**3 / best(lambda: a @ a)


def best(step: Callable[[], object], times: int = 10) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return min(taken)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in Shapes._field_defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", choices=["float32", "float64", "bfloat16"])
    parser.add_argument("--threads", type=integers, default=[1], help="e.g. 1,2")
    parser.add_argument("--ops", type=lambda text: text.split(","), default=[], help="e.g. attention,rms_norm")
    parser.add_argument("--seconds", type=float, default=0.8, help="time for each op")
    options = parser.parse_args()
    options.shapes = Shapes(*(getattr(options, name) for name in Shapes._fields))
    return options


def integers(text: str) -> Iterable[int]:
    return [int(word) for word in text.split(",")]


if __name__ == "__main__":
    main()
