"""Collectives of NVIDIA GPUs: NCCL through ``torch.distributed``.

NCCL gathers and scatters in place if the part is this rank's part of the whole. One that lies anywhere else in the
whole would be written while other ranks still read it.
"""

from __future__ import annotations

from torch import Tensor

from evocore.ops.collectives import Collectives


class CUDACollectives(Collectives):
    """NCCL."""

    def works_in_place(self, part: Tensor, whole: Tensor, rank: int) -> bool:
        return part.storage_offset() - whole.storage_offset() == rank * part.numel()
