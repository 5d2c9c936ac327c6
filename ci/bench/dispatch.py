"""What it costs to call an op through evocore rather than the kernel's function by name.

    python ci/bench/dispatch.py [--rounds 101] [--json]

A layer holds the function that resolution chose, so that only an attribute is looked up. Each round times both ways
in turn; reported are medians over the rounds, and the median of the differences within a round. The target is 200 ns.
The first line runs a kernel that does nothing, so that the difference is not lost in its noise; the second a real
one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import timeit
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evocore.nn.binding import bind_kernels, model_requests
from evocore.nn.layers import RMSNorm
from evocore.ops.kernel import Kernel
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins

TARGET = 200.0  # nanoseconds
CALLS = 2000
WIDTH = 8


def nothing(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    """A kernel that costs as little as a Python function can."""
    return x_TD


def bound_layer(kernels: list[Kernel]) -> RMSNorm:
    """A small layer with the kernels that win among these."""
    dtype = torch.float32
    layer = RMSNorm(WIDTH, eps=1e-5, dtype=dtype, weight_dtype=dtype, residual_dtype=dtype)
    bind_kernels(layer, resolve(model_requests(layer), kernels, "cpu"))
    return layer


def measure(layer: RMSNorm, direct: Callable[..., Any], rounds: int) -> dict[str, float]:
    """Nanoseconds per call through the layer and directly."""
    x, weight = torch.ones(1, WIDTH), torch.ones(WIDTH)
    names = {"layer": layer, "direct": direct, "x": x, "weight": weight}
    through = timeit.Timer("layer.rms_norm(x, weight, eps=1e-5)", globals=names)
    by_name = timeit.Timer("direct(x, weight, eps=1e-5)", globals=names)
    pairs = [(through.timeit(CALLS) / CALLS * 1e9, by_name.timeit(CALLS) / CALLS * 1e9) for _ in range(rounds + 1)][
        1:
    ]  # the first round warms up
    return {
        "through_evocore_ns": statistics.median(pair[0] for pair in pairs),
        "direct_ns": statistics.median(pair[1] for pair in pairs),
        "overhead_ns": statistics.median(pair[0] - pair[1] for pair in pairs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    offers = load_plugins().kernels()
    empty = Kernel(
        "rms_norm", "nothing", frozenset({"cpu"}), f"{__name__}:nothing", frozenset({torch.float32}), priority=1000
    )
    results = {}
    with torch.no_grad():
        for name, kernels in (("nothing", [*offers, empty]), ("rms_norm", offers)):
            layer = bound_layer(kernels)
            results[name] = measure(layer, layer.rms_norm, options.rounds)
    if options.json:
        print(json.dumps({"target_ns": TARGET, **results}, indent=1))
        return
    print(f"{'kernel':10} {'evocore':>10} {'direct':>10} {'overhead':>10}   ns per call, target {TARGET:.0f}")
    for name, row in results.items():
        print(f"{name:10} {row['through_evocore_ns']:10.0f} {row['direct_ns']:10.0f} {row['overhead_ns']:10.1f}")


if __name__ == "__main__":
    main()
