"""The most that is whole at a moment of a step, of weights that ranks share and of their gradients.

Sizes: W ranks of the group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from evocore.config.schema_parallel import Weight
from evocore.nn.experts import ExpertLinear
from evocore.parallel.blocks import part_of
from evocore.parallel.isp.plan import Call, Unit
from evocore.parallel.layout import Layout
from evocore.parallel.traffic.fully_sharded import Unit as ShardedUnit
from evocore.parallel.traffic.isp import gathered_sizes
from evocore.parallel.traffic.uses import Uses

# --- weight parallelism ---------------------------------------------------------------------------------------------


def weights_for_moments(uses: Uses, weight: Weight, ranks: int, *, keeps_buffers: bool) -> dict[str, int]:
    """Bytes of what isp gathers, copies and reduces.

    Args:
        ranks: W.
        keeps_buffers: see ``Backend.reuses_gather_buffers``.
    """
    return {
        "gathered weights": _gathered(uses, weight, ranks, keeps_buffers),
        "weights copied out of a common gather": _copied(uses.calls, weight, ranks),
        "gradients of gathered weights": _unreduced(_call_sizes(uses.calls, ranks), weight),
    }


def _gathered(uses: Uses, weight: Weight, ranks: int, keeps_buffers: bool) -> int:
    """The most bytes of gathered weights at a moment; with kept buffers, of these, which never get fewer."""
    moments = [
        Counter(size for unit in units for size in gathered_sizes(unit, ranks, fused=weight.layer_fuse_isp_comm))
        for units in _moments(uses, weight)
    ]
    if not keeps_buffers:
        return max(sum(size * count for size, count in moment.items()) for moment in moments)
    sizes = set().union(*moments)
    return sum(size * max(moment[size] for moment in moments) for size in sizes)


def _moments(uses: Uses, weight: Weight) -> Iterator[set[Unit]]:
    """Units that may be whole at the same time."""
    calls = uses.calls
    if not weight.overlap:
        yield from ({call.unit} for call in calls)
    else:
        yield from ({before.unit, after.unit} for before, after in pairwise(calls))
    for block in uses.recomputed:  # a recomputed weight stays until its call's backward
        yield {call.unit for call in calls if call.block == block}
    if weight.overlap and weight.forward_overlap_per == "module":
        for before, after in pairwise(calls):
            if before.block != after.block and before.block in uses.recomputed:
                first = next(call for call in calls if call.block == before.block)
                yield {after.unit, first.unit}


def _copied(calls: Sequence[Call], weight: Weight, ranks: int) -> int:
    """The most bytes of weights that a call copies, as the shards of a common gather lie rank by rank."""
    if not weight.layer_fuse_isp_comm:
        return 0
    copying = [call for call in calls if len(call.unit.layers) > 1]
    return max(_call_sizes(copying, ranks), default=0)


def _call_sizes(calls: Sequence[Call], ranks: int) -> list[int]:
    return [sum(ranks * layer.weight.nbytes for layer in call.layers) for call in calls]


def _unreduced(sizes: Sequence[int], weight: Weight) -> int:
    """The most bytes of whole gradients at a moment: of one call, and with overlap of what is under way beside it."""
    if not weight.overlap:
        return max(sizes)
    if not weight.early_reduce_scatter_release:
        return sum(sizes)
    return max((before + after for before, after in pairwise(sizes)), default=max(sizes))


# --- weight parallelism of experts ----------------------------------------------------------------------------------


def experts_for_moments(uses: Uses, weight: Weight, ranks: int, starts: Sequence[int]) -> dict[str, int]:
    """Bytes of what is gathered and reduced of experts, in which autograd's own copy of a gradient is counted.

    Args:
        ranks: W.
        starts: see ``Layout.chunk_starts``.
    """
    layers = [
        (number, ranks * module.weight.nbytes)
        for number, block in enumerate(uses.blocks)
        for module in block.modules()
        if isinstance(module, ExpertLinear)
    ]
    if not layers:
        return {}
    gathered: list[int] = []
    for place, (number, size) in enumerate(layers):
        before, ahead = layers[place - 1] if place else (-1, 0)
        ahead = ahead if weight.overlap and place and part_of(before, starts) == part_of(number, starts) else 0
        gathered.append(size + ahead)
        if number in uses.recomputed and before != number:  # recomputed weights stay until their backward
            gathered.append(sum(size for other, size in layers if other == number) + ahead)
    sizes = [size for _, size in layers]
    return {
        "gathered weights of experts": max(gathered),
        "gradients of gathered weights of experts": _unreduced(sizes, weight) + max(sizes),
    }


# --- full sharding --------------------------------------------------------------------------------------------------


def matrices_for_moments(units: Sequence[ShardedUnit], layout: Layout, communicate: torch.dtype) -> dict[str, int]:
    """Bytes of what PyTorch gathers and reduces, and of gradients that a schedule has put off.

    What arrives is copied to the matrices that are computed with, and is let go of when the next has arrived; of
    gradients, the copy that is sent is let go of when the next is ready.

    Args:
        units: in the order of forward.
        communicate: dtype in which gradients travel.
    """
    if not units:
        return {}
    ranks = layout.part("zero").parts
    whole = [ranks * unit.elements * unit.dtype.itemsize for unit in units]
    after = [*whole[1:], whole[-2] if len(whole) > 1 else 0]  # backward begins where forward ends
    stays = whole[-1] if layout.chunks else 0  # while other micro-batches go forward
    computed = [sum(matrix.whole for matrix in unit.matrices) * unit.dtype.itemsize for unit in units]
    sent = [ranks * unit.elements * communicate.itemsize for unit in units]
    sent_before = [*sent[1:], 0]
    gradients = [own + max(sending) for own, *sending in zip(computed, sent, sent_before, strict=True)]
    later = [*units[1:], None]
    gradients += [_put_off(unit, next_, ranks, communicate) for unit, next_ in zip(units, later, strict=True)]
    return {
        "gathered matrices": stays + max(2 * own + next_ for own, next_ in zip(whole, after, strict=True)),
        "gradients of gathered matrices": max(gradients),
    }


def _put_off(unit: ShardedUnit, after: ShardedUnit | None, ranks: int, communicate: torch.dtype) -> int:
    """Gradients of a unit that are computed together; then they are filled up and copied to be sent.

    Until then those of the unit after it are on their way.
    """
    matrices = [matrix for matrix in unit.matrices if matrix.deferred]
    filled = [ranks * matrix.elements for matrix in matrices if ranks * matrix.elements != matrix.whole]
    copied = max(filled, default=0) * unit.dtype.itemsize + _sent_later(unit, ranks, communicate)
    on_their_way = 0 if after is None else _sent_later(after, ranks, communicate)
    return sum(matrix.whole for matrix in matrices) * unit.dtype.itemsize + max(copied, on_their_way)


def _sent_later(unit: ShardedUnit, ranks: int, communicate: torch.dtype) -> int:
    return sum(ranks * matrix.elements for matrix in unit.matrices if matrix.deferred) * communicate.itemsize
