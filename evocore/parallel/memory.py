"""Bytes that one rank holds for its part of a model, by arithmetic: parameters, gradients, optimizer state.

Parameters live in buckets (see ``evocore.parallel.buckets``), each padded so that it divides evenly. What is held all
the time is exact; what weight parallelism has beside it for moments of a step is a bound. Not counted: activations,
what kernels and collectives need for themselves, pipelines, experts, and fully sharded data parallelism.

Sizes: n elements of a bucket with padding, Z ranks of its ZeRO group, W ranks of the weight group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from evocore.config.schema_parallel import Weight
from evocore.parallel.buckets import Bucket
from evocore.parallel.isp.plan import Call, Unit, make_plan
from evocore.parallel.layout import Layout
from evocore.parallel.traffic import gathered_sizes


@dataclass(frozen=True)
class Holding:
    """One kind of memory of one rank.

    Attributes:
        what: is in it.
        bytes: of it.
        padding: bytes among these that stand for nothing.
        bound: whether ``bytes`` is the most that it can be at a moment of a step; otherwise it is there all the time.
    """

    what: str
    bytes: int
    padding: int = 0
    bound: bool = False


def memory(
    model: nn.Module,
    layout: Layout,
    buckets: Sequence[Bucket],
    *,
    weight: Weight,
    keeps_buffers: bool = False,
) -> list[Holding]:
    """What a rank holds; kinds of which it holds nothing are left out.

    Args:
        model: cut to the layout by ``Layout.shard``; the meta device is enough.
        layout: of the rank.
        buckets: of the optimizer.
        weight: settings of weight parallelism.
        keeps_buffers: see ``Backend.reuses_gather_buffers``.
    """
    total: Counter[str] = Counter()
    padding: Counter[str] = Counter()
    for bucket in buckets:
        for what, itemsize, elements, used in _of_bucket(bucket):
            total[what] += elements * itemsize
            padding[what] += (elements - used) * itemsize
    held = [Holding(what, size, padding[what]) for what, size in total.items()]
    ranks = layout.part("weight").parts
    if layout.mode == "isp" and ranks > 1:
        recomputed: int = model.recomputed_attention_layers()  # type: ignore[operator]
        calls = make_plan(model, weight, recomputed)
        held += [
            Holding("gathered weights", _gathered(calls, weight, ranks, recomputed, keeps_buffers), bound=True),
            Holding("weights copied out of a common gather", _copied(calls, weight, ranks), bound=True),
            Holding("gradients of gathered weights", _unreduced(calls, weight, ranks), bound=True),
        ]
    return [one for one in held if one.bytes]


def _of_bucket(bucket: Bucket) -> Iterator[tuple[str, int, int, int]]:
    """What, bytes of an element, elements, and how many of these are no padding."""
    float32 = torch.float32.itemsize
    parameters = bucket.members[0].parameter
    elements = bucket.values.numel()
    used = sum(member.sharing.placement.numel for member in bucket.members)
    own = elements // bucket.zero.size
    own_used = sum(placement.numel for _, placement, _ in bucket.own_parts())
    yield "parameters", parameters.itemsize, elements, used
    yield "gradients", float32, elements, used
    if bucket.zero.size > 1:
        yield "reduced gradients", float32, own, own_used
    if parameters.dtype != torch.float32:  # otherwise the parameters are their own master weights
        yield "master weights", float32, own, own_used
    yield "first moments", float32, own, own_used
    yield "second moments", float32, own, own_used


# --- weights that are whole for a moment ----------------------------------------------------------------------------


def _gathered(calls: Sequence[Call], weight: Weight, ranks: int, recomputed: int, keeps_buffers: bool) -> int:
    """The most bytes of gathered weights at a moment; with kept buffers, of these, which never get fewer."""
    moments = [
        Counter(size for unit in units for size in gathered_sizes(unit, ranks, fused=weight.layer_fuse_isp_comm))
        for units in _moments(calls, weight, recomputed)
    ]
    if not keeps_buffers:
        return max(sum(size * count for size, count in moment.items()) for moment in moments)
    sizes = set().union(*moments)
    return sum(size * max(moment[size] for moment in moments) for size in sizes)


def _moments(calls: Sequence[Call], weight: Weight, recomputed: int) -> Iterator[set[Unit]]:
    """Units that may be whole at the same time."""
    if not weight.overlap:
        yield from ({call.unit} for call in calls)
    else:
        yield from ({before.unit, after.unit} for before, after in pairwise(calls))
    for block in range(recomputed):  # a recomputed weight stays until its call's backward
        yield {call.unit for call in calls if call.block == block}
    if weight.overlap and weight.forward_overlap_per == "module":
        for before, after in pairwise(calls):
            if before.block != after.block and before.block is not None and before.block < recomputed:
                first = next(call for call in calls if call.block == before.block)
                yield {after.unit, first.unit}


def _copied(calls: Sequence[Call], weight: Weight, ranks: int) -> int:
    """The most bytes of weights that a call copies, as the shards of a common gather lie rank by rank."""
    if not weight.layer_fuse_isp_comm:
        return 0
    copying = [call for call in calls if len(call.unit.layers) > 1]
    return max((sum(ranks * layer.weight.nbytes for layer in call.layers) for call in copying), default=0)


def _unreduced(calls: Sequence[Call], weight: Weight, ranks: int) -> int:
    """The most bytes of whole gradients at a moment: of one call, and with overlap of what is under way beside it."""
    sizes = [sum(ranks * layer.weight.nbytes for layer in call.layers) for call in calls]
    if not weight.overlap:
        return max(sizes)
    if not weight.early_reduce_scatter_release:
        return sum(sizes)
    return max(before + after for before, after in pairwise(sizes))
