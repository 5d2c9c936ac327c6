"""Collectives of the NPU: HCCL, kept within the types that it reduces.

HCCL's average is a sum that is divided in place, which integers do not survive, and its reduce-scatter knows no small
integers; what it lacks is refused by name here, before ranks wait for one another.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import Collectives, Handle

_REDUCED = frozenset(
    {torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8}
)


class NPUCollectives(Collectives):
    """HCCL."""

    def dtypes(self) -> frozenset[torch.dtype]:
        return _REDUCED

    def all_reduce(
        self, tensor: Tensor, group: dist.ProcessGroup | None = None, *, op: str = "sum", asynchronous: bool = False
    ) -> Handle:
        _check("all_reduce", tensor)
        return super().all_reduce(tensor, group, op=op, asynchronous=asynchronous)

    def reduce_scatter(
        self,
        shard: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        op: str = "sum",
        asynchronous: bool = False,
    ) -> Handle:
        _check("reduce_scatter", tensor)
        return super().reduce_scatter(shard, tensor, group, op=op, asynchronous=asynchronous)


def _check(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _REDUCED:
        able = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in _REDUCED))
        raise ValueError(f"{name} of {tensor.dtype} over HCCL: it reduces {able}; convert the tensor")
