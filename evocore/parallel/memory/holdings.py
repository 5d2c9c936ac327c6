"""What a rank holds, whatever the mode.

Sizes: n elements of a bucket with padding, Z ranks of its ZeRO group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import nn

from evocore.config.schema_parallel import Weight
from evocore.parallel.buckets import Bucket
from evocore.parallel.layout import Layout
from evocore.parallel.memory.moments import experts_for_moments, matrices_for_moments, weights_for_moments
from evocore.parallel.sharding import Sharing
from evocore.parallel.traffic.fully_sharded import Unit, gathered_units
from evocore.parallel.traffic.uses import Uses


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
    sharings: Mapping[str, Sharing],
    buckets: Sequence[Bucket],
    *,
    weight: Weight,
    expert_weight: Weight | None = None,
    communicate: torch.dtype = torch.float32,
    keeps_buffers: bool = False,
) -> list[Holding]:
    """What a rank holds; kinds of which it holds nothing are left out.

    Args:
        model: cut to the layout by ``Layout.shard`` and ``Layout.cut``; the meta device is enough.
        layout: of the rank.
        sharings: of the model's parameters, by name.
        buckets: of the optimizer.
        weight, expert_weight: settings of weight parallelism, and of that of experts.
        communicate: dtype in which gradients travel.
        keeps_buffers: see ``Backend.reuses_gather_buffers``.
    """
    units = gathered_units(model, layout, sharings)
    total: Counter[str] = Counter()
    padding: Counter[str] = Counter()
    for what, itemsize, elements, used in chain(*map(_of_bucket, buckets), *map(_of_rows, units)):
        total[what] += elements * itemsize
        padding[what] += (elements - used) * itemsize
    held = [Holding(what, size, padding[what]) for what, size in total.items()]
    held.append(Holding("buffers", sum(buffer.nbytes for buffer in model.buffers())))
    uses = Uses.of(model, layout, weight)
    moments: dict[str, int] = {}
    if layout.mode == "isp" and layout.part("weight").parts > 1:
        moments |= weights_for_moments(uses, weight, layout.part("weight").parts, keeps_buffers=keeps_buffers)
    if layout.part("expert_weight").parts > 1:
        ranks, starts = layout.part("expert_weight").parts, layout.chunk_starts()
        moments |= experts_for_moments(uses, expert_weight or Weight(), ranks, starts)
    moments |= matrices_for_moments(units, layout, communicate)
    held += [Holding(what, size, bound=True) for what, size in moments.items()]
    return [one for one in held if one.bytes]


_Part = tuple[str, int, int, int]
"""What, bytes of an element, elements, and how many of these are no padding."""
_FLOAT32 = torch.float32.itemsize


def _of_bucket(bucket: Bucket) -> Iterator[_Part]:
    parameters = bucket.members[0].parameter
    elements = bucket.values.numel()
    used = sum(member.sharing.placement.numel for member in bucket.members)
    own = elements // bucket.zero.size
    own_used = sum(placement.numel for _, placement, _ in bucket.own_parts())
    yield "parameters", parameters.itemsize, elements, used
    yield "gradients", _FLOAT32, elements, used
    if parameters.dtype != torch.float32:  # otherwise the parameters are their own master weights
        yield "master weights", _FLOAT32, own, own_used
    yield "first moments", _FLOAT32, own, own_used
    yield "second moments", _FLOAT32, own, own_used


def _of_rows(unit: Unit) -> Iterator[_Part]:
    """Fully sharded matrices are their own master weights, and their gradients are reduced ones."""
    for matrix in unit.matrices:
        gradient = matrix.used if matrix.deferred else matrix.elements
        yield "parameters", _FLOAT32, matrix.elements, matrix.used
        yield "gradients", _FLOAT32, gradient, matrix.used
        yield "first moments", _FLOAT32, matrix.used, matrix.used
        yield "second moments", _FLOAT32, matrix.used, matrix.used
