"""Parallel sizes for as many processes as there are: those of the config, or divisors of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import gcd, prod
from typing import Any

from evocore.config.checks_parallel import expert_tensor_size
from evocore.config.schema import Config


def parallel_sizes(config: Config, world_size: int) -> dict[str, Any]:
    """The sizes of the block ``parallel`` that a number of ranks can have, by dotted key."""
    parallel, isp = config.parallel, config.parallel.tensor.mode == "isp"
    tensor, pipeline, weight = _reduced(
        (parallel.tensor.size, parallel.pipeline.size, parallel.weight.size if isp else 1),
        lambda tensor, pipeline, weight: world_size % (pipeline * tensor) == world_size % (pipeline * weight) == 0,
    )
    stage = world_size // pipeline
    found: dict[str, Any] = {
        "parallel.tensor.size": tensor,
        "parallel.pipeline.size": pipeline,
        "parallel.weight.size": weight if isp else parallel.weight.size,
        "parallel.zero1.size": _divided(parallel.zero1.size, stage // (weight if isp else tensor)),
    }
    if pipeline != parallel.pipeline.size or parallel.pipeline.layers is not None:
        found["parallel.pipeline.layers"] = None
    if parallel.sequence_2D.enable:
        found |= _two_dimensions(config, parallel.tensor.size // tensor)
    return found | _experts(config, tensor, stage)


def _two_dimensions(config: Config, divisor: int) -> dict[str, Any]:
    """``divisor`` times fewer ranks: first fewer that share the context, then fewer that share the heads."""
    two, key = config.parallel.sequence_2D, "parallel.sequence_2D"
    less = gcd(two.context_size, divisor)
    context, head = two.context_size // less, two.head_size // (divisor // less)
    window = gcd(two.window_size, context)
    found: dict[str, Any] = {f"{key}.head_size": head, f"{key}.context_size": context, f"{key}.window_size": window}
    if two.device_placement_strategy.interleaved and context % (2 * window):
        found[f"{key}.device_placement_strategy.interleaved"] = False
    return found


def _experts(config: Config, tensor: int, stage: int) -> dict[str, Any]:
    parallel = config.parallel
    if config.model.num_experts == 1:
        return {}
    isp = parallel.tensor.mode == "isp"
    split = 1 if expert_tensor_size(config) == 1 else tensor
    named = parallel.expert.size > 0
    ranks = stage if parallel.expert.no_tp else stage // tensor
    wanted = parallel.expert.size if named else min(ranks, config.model.num_experts)
    size, weight = _reduced(
        (wanted, parallel.expert_weight.size if isp else 1),
        lambda size, weight: stage % (size * split * weight) == 0,
    )
    return {
        "parallel.expert.size": size if named else parallel.expert.size,
        "parallel.expert_weight.size": weight if isp else parallel.expert_weight.size,
        "parallel.expert_zero1.size": _divided(parallel.expert_zero1.size, stage // (size * split * weight)),
    }


def _divided(size: int, ranks: int) -> int:
    """The largest divisor of both; what means all ranks stays."""
    return gcd(size, ranks) if size > 1 else size


def _reduced(sizes: tuple[int, ...], fits: Callable[..., bool]) -> tuple[int, ...]:
    """Divisors of the sizes that fit together: as many ranks as possible, shared as evenly as possible."""
    choices = product(*([part for part in range(1, size + 1) if size % part == 0] for size in sizes))
    return max((some for some in choices if fits(*some)), key=lambda some: (prod(some), -sum(some), some))
