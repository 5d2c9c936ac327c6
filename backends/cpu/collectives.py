"""Collectives of the CPU: gloo, with its slow reduce-scatter replaced.

gloo's own reduce-scatter costs more than its all-reduce. An all-to-all followed by a local sum moves the same bytes,
is 2 to 5 times faster and adds in rank order, so that its result does not depend on timing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import FINISHED, Collectives, Handle


class _SumWhenArrived:
    """Waits for the parts of all ranks and adds them up."""

    def __init__(self, work: Handle, parts: Tensor, shard: Tensor, average: bool) -> None:
        self._work, self._parts, self._shard, self._average = work, parts, shard, average

    def wait(self) -> None:
        self._work.wait()
        total = self._parts.sum(0, dtype=torch.promote_types(self._parts.dtype, torch.float32))
        if self._average:
            total /= self._parts.shape[0]
        self._shard.copy_(total.view_as(self._shard))


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
        parts = torch.empty_like(tensor).view(dist.get_world_size(group), *shard.shape)
        work = self.all_to_all(parts.view_as(tensor), tensor, group, asynchronous=asynchronous)
        handle = _SumWhenArrived(work, parts, shard, average=op == "avg")
        if asynchronous:
            return handle
        handle.wait()
        return FINISHED
