"""Collectives of NVIDIA GPUs: NCCL through ``torch.distributed``, with what it leaves undefined defined.

NCCL scatters a reduction in place if the shard is this rank's part of the whole. A shard that lies anywhere else in
the whole would be written while other ranks still read it.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import FINISHED, Collectives, Handle, check_reduce_scatter, is_alone


class CUDACollectives(Collectives):
    """NCCL."""

    gathers_in_place: ClassVar[bool] = True

    def reduce_scatter(
        self,
        shard: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        op: str = "sum",
        asynchronous: bool = False,
    ) -> Handle:
        """As the contract."""
        if is_alone(group) or not _overlaps_elsewhere(shard, tensor, dist.get_rank(group)):
            return super().reduce_scatter(shard, tensor, group, op=op, asynchronous=asynchronous)
        check_reduce_scatter(shard, tensor, group, op)
        apart = torch.empty_like(shard)
        work = super().reduce_scatter(apart, tensor, group, op=op, asynchronous=asynchronous)
        handle = _CopyWhenArrived(work, apart, shard.detach())
        if asynchronous:
            return handle
        handle.wait()
        return FINISHED


class _CopyWhenArrived:
    """Waits for a result and puts it where it belongs."""

    def __init__(self, work: Handle, result: Tensor, target: Tensor) -> None:
        self._work, self._target = work, target
        self._result: Tensor | None = result

    def wait(self) -> None:
        if self._result is None:
            return
        self._work.wait()
        self._target.copy_(self._result)
        self._result = None


def _overlaps_elsewhere(shard: Tensor, tensor: Tensor, rank: int) -> bool:
    """Whether ``shard`` shares memory with ``tensor`` and is not its part of number ``rank``."""
    if shard.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr() or not tensor.is_contiguous():
        return False  # a tensor with gaps is copied before it is sent
    start = shard.storage_offset() - tensor.storage_offset()
    apart = start >= tensor.numel() or start + shard.numel() <= 0
    return not apart and start != rank * shard.numel()
