"""Collectives of the CPU: gloo, with its slow reduce-scatter replaced.

gloo's own reduce-scatter costs more than its all-reduce. An all-to-all followed by a local sum moves the same bytes,
is 2 to 5 times faster, and adds in rank order, so that its result depends on nothing but its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import (
    FINISHED,
    Collectives,
    Handle,
    check_reduce_scatter,
    group_size,
    is_alone,
)

SPARES = 2
"""Buffers that are kept for the next reduce-scatter: memory that is new costs more than what is written into it."""


class CPUCollectives(Collectives):
    """gloo."""

    gathers_in_place: ClassVar[bool] = True

    def __init__(self) -> None:
        self._spares: list[Tensor] = []

    def reduce_scatter(
        self,
        shard: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        op: str = "sum",
        asynchronous: bool = False,
    ) -> Handle:
        """As the contract; bfloat16 and float16 are added in float32 and rounded once."""
        if is_alone(group) or tensor.numel() == 0:
            return super().reduce_scatter(shard, tensor, group, op=op)
        check_reduce_scatter(shard, tensor, group, op)
        buffer, parts = self._room(tensor.dtype, (group_size(group), *shard.shape))
        work = self.all_to_all(parts, tensor.detach().reshape(parts.shape), group, asynchronous=asynchronous)
        handle = _SumWhenArrived(work, parts, shard.detach(), average=op == "avg", done=lambda: self._keep(buffer))
        if asynchronous:
            return handle
        handle.wait()
        return FINISHED

    def _room(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Memory for a tensor, and the tensor."""
        size = prod(shape) * dtype.itemsize
        large = [spare for spare in self._spares if len(spare) >= size]
        buffer = min(large, key=len) if large else torch.empty(size, dtype=torch.uint8)
        self._spares = [spare for spare in self._spares if spare is not buffer]
        return buffer, buffer[:size].view(dtype).view(shape)

    def _keep(self, buffer: Tensor) -> None:
        self._spares = sorted([*self._spares, buffer], key=len)[-SPARES:]


class _SumWhenArrived:
    """Waits for the parts of all ranks and adds them up."""

    def __init__(
        self, work: Handle, parts: Tensor, shard: Tensor, *, average: bool, done: Callable[[], None]
    ) -> None:
        self._work, self._shard, self._average, self._done = work, shard, average, done
        self._parts: Tensor | None = parts

    def wait(self) -> None:
        if self._parts is None:
            return
        self._work.wait()
        ranks = len(self._parts)
        first, *others = self._parts
        if first.dtype.is_floating_point and first.itemsize < 4:
            total = first.float()
        elif others:
            total = torch.add(first, others.pop(0), out=self._shard)  # of two ranks the only pass
        else:
            total = first
        for part in others:
            total += part
        if self._average:
            total /= ranks
        if total is not self._shard:
            self._shard.copy_(total)
        self._parts = None
        self._done()
