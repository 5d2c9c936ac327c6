"""Collectives of the CPU: gloo, with its slow reduce-scatter replaced.

gloo's own reduce-scatter costs more than its all-reduce. An all-to-all followed by a local sum moves the same bytes,
is 2 to 5 times faster, and adds in rank order, so that its result depends on nothing but its inputs.
"""

from __future__ import annotations

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


class CPUCollectives(Collectives):
    """gloo."""

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
        parts = torch.empty(group_size(group), *shard.shape, dtype=tensor.dtype)
        work = self.all_to_all(parts, tensor.detach().reshape(parts.shape), group, asynchronous=asynchronous)
        handle = _SumWhenArrived(work, parts, shard.detach(), average=op == "avg")
        if asynchronous:
            return handle
        handle.wait()
        return FINISHED


class _SumWhenArrived:
    """Waits for the parts of all ranks and adds them up."""

    def __init__(self, work: Handle, parts: Tensor, shard: Tensor, average: bool) -> None:
        self._work, self._shard, self._average = work, shard, average
        self._parts: Tensor | None = parts

    def wait(self) -> None:
        if self._parts is None:
            return
        self._work.wait()
        first, *others = self._parts
        total = first.float() if first.dtype.is_floating_point and first.itemsize < 4 else first
        for part in others:
            total += part
        if self._average:
            total /= 1 + len(others)
        self._shard.copy_(total)
        self._parts = None
