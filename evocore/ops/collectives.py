"""Contract of the collectives: what the parallel runtime asks of a device's communication library.

The default goes through ``torch.distributed``; a backend overrides what its library does better in another way. Rules
that hold for every call:

- ``group`` is a process group, or None for all processes. In a program without process groups there is one process,
  and a call with None does what a group of that one process would do.
- A tensor that is only read may have any strides. One that is written to must be contiguous.
- Where every rank passes the same size and that size is zero, nothing is sent.
- ``asynchronous=True`` returns at once; the result may be read, and the tensors that went in may be changed, after
  the handle's ``wait()``. Waiting again does nothing.

Sizes: W is the number of ranks in the group.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor


class Handle(Protocol):
    """A collective under way."""

    def wait(self) -> object:
        """Block (or make the current stream wait) until the result may be read."""
        ...


class Finished:
    """The handle of a collective that is already done."""

    def wait(self) -> None:
        return None


FINISHED = Finished()


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


REDUCED = frozenset(
    {torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8, torch.uint8}
)
"""What every library of PyTorch's own reduces."""


class Collectives:
    """Collectives through ``torch.distributed``.

    Raises:
        ValueError: by every method, before anything is sent, for sizes that do not fit together, an unknown ``op`` or
            an output with gaps.
    """

    def dtypes(self) -> frozenset[torch.dtype]:
        """What it can reduce: asked before a run starts, so that no rank waits for one that was refused."""
        return REDUCED

    def works_in_place(self, part: Tensor, whole: Tensor, rank: int) -> bool:
        """Whether the library itself can gather ``part`` into ``whole``, or scatter into it, where they overlap.

        Where it cannot, a copy of the part is made. Both are without gaps; ``rank`` is this one's place in the group.
        """
        return False

    def all_reduce(
        self, tensor: Tensor, group: dist.ProcessGroup | None = None, *, op: str = "sum", asynchronous: bool = False
    ) -> Handle:
        """Reduce in place over the group; ``op`` is sum, avg (of floating-point numbers), max or min."""
        reduction = _reduction("all_reduce", op, tensor, ("sum", "avg", "max", "min"))
        _check_writable("all_reduce", tensor)
        if tensor.numel() == 0 or is_alone(group):
            return FINISHED
        return dist.all_reduce(tensor, op=reduction, group=group, async_op=asynchronous) or FINISHED

    def all_gather(
        self, output: Tensor, shard: Tensor, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        """Concatenate the equal shards of all ranks along dimension 0 into ``output``, W times as long.

        ``shard`` may be this rank's part of ``output``.
        """
        check_all_gather(output, shard, group)
        if output.numel() == 0:
            return FINISHED
        if is_alone(group):
            return _copy(output, shard)
        shard = shard.contiguous()
        if _overlap(shard, output) and not self.works_in_place(shard, output, dist.get_rank(group)):
            shard = shard.clone()
        return _all_gather_single(output, shard, group=group, async_op=asynchronous) or FINISHED

    def reduce_scatter(
        self,
        shard: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        op: str = "sum",
        asynchronous: bool = False,
    ) -> Handle:
        """Reduce ``tensor`` over the group and keep this rank's part of dimension 0 in ``shard``.

        ``op`` is sum, or avg of floating-point numbers. ``shard`` may be a part of ``tensor``; the rest of ``tensor``
        is not modified.
        """
        reduction = check_reduce_scatter(shard, tensor, group, op)
        if tensor.numel() == 0:
            return FINISHED
        if is_alone(group):
            return _copy(shard, tensor)
        tensor, target = tensor.contiguous(), shard
        if _overlap(shard, tensor) and not self.works_in_place(shard, tensor, dist.get_rank(group)):
            target = torch.empty_like(shard)
        work = _reduce_scatter_single(target, tensor, op=reduction, group=group, async_op=asynchronous) or FINISHED
        if target is shard:
            return work
        handle = _CopyWhenArrived(work, target, shard.detach())
        if asynchronous:
            return handle
        handle.wait()
        return FINISHED

    def all_to_all(
        self,
        output: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        output_splits: list[int] | None = None,
        input_splits: list[int] | None = None,
        asynchronous: bool = False,
    ) -> Handle:
        """Send part r of dimension 0 to rank r and receive one part from each; None splits evenly.

        A split may be zero, and so may all of them on some ranks: every rank of the group calls all the same.
        """
        _check_writable("all_to_all", output)
        for splits, rows in ((output_splits, output), (input_splits, tensor)):
            _check_splits(splits, rows, group_size(group))
        if is_alone(group):
            return _copy(output, tensor)
        work = dist.all_to_all_single(
            output, tensor.contiguous(), output_splits, input_splits, group=group, async_op=asynchronous
        )
        return work or FINISHED

    def broadcast(
        self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        """Overwrite ``tensor`` by that of global rank ``source``."""
        _check_writable("broadcast", tensor)
        if tensor.numel() == 0 or is_alone(group):
            return FINISHED
        return dist.broadcast(tensor, source, group=group, async_op=asynchronous) or FINISHED

    def send(self, tensor: Tensor, destination: int, group: dist.ProcessGroup | None = None) -> Handle:
        """Send to global rank ``destination``; the tensor must stay untouched until the handle is waited for.

        Messages between two ranks arrive in the order in which they were sent.
        """
        if tensor.numel() == 0:
            return FINISHED
        return dist.isend(tensor.contiguous(), destination, group=group) or FINISHED

    def recv(self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None) -> Handle:
        """Receive from global rank ``source`` into ``tensor``, which has the size and dtype of what is sent."""
        _check_writable("recv", tensor)
        if tensor.numel() == 0:
            return FINISHED
        return dist.irecv(tensor, source, group=group) or FINISHED

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        """Wait until every rank of the group is here."""
        if not is_alone(group):
            dist.barrier(group=group)

    def agree(self, mine: str, group: dist.ProcessGroup | None = None) -> list[str]:
        """The texts of all ranks in rank order, for checks before the first step (slow, never in a step)."""
        if is_alone(group):
            return [mine]
        texts: list[str] = [""] * dist.get_world_size(group)
        dist.all_gather_object(texts, mine, group=group)
        return texts


# --- for those who override a method ------------------------------------------------------------------------------


def is_alone(group: dist.ProcessGroup | None) -> bool:
    """Whether all processes are asked for in a program that has no process groups: it is one process."""
    return group is None and not dist.is_initialized()


def group_size(group: dist.ProcessGroup | None) -> int:
    """W, the number of ranks in the group."""
    return 1 if is_alone(group) else dist.get_world_size(group)


def check_all_gather(output: Tensor, shard: Tensor, group: dist.ProcessGroup | None) -> None:
    """Refuse what ``Collectives.all_gather`` refuses."""
    _check_writable("all_gather", output)
    _check_parts("all_gather", whole=output, part=shard, ranks=group_size(group))


def check_reduce_scatter(
    shard: Tensor, tensor: Tensor, group: dist.ProcessGroup | None, op: str
) -> dist.ReduceOp.RedOpType:
    """Refuse what ``Collectives.reduce_scatter`` refuses; return what PyTorch calls the reduction."""
    reduction = _reduction("reduce_scatter", op, tensor, ("sum", "avg"))
    _check_writable("reduce_scatter", shard)
    _check_parts("reduce_scatter", whole=tensor, part=shard, ranks=group_size(group))
    return reduction


# --- what every call checks, and the names that PyTorch changed --------------------------------------------------

_OPS = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}

# PyTorch 2.13 renamed both; the former names still work there and warn.
_all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _reduction(name: str, op: str, tensor: Tensor, allowed: tuple[str, ...]) -> dist.ReduceOp.RedOpType:
    if op not in allowed:
        raise ValueError(f"{name} has no op {op!r}: it can be {', '.join(allowed)}")
    if op == "avg" and not tensor.dtype.is_floating_point:
        raise ValueError(f"{name} has no avg of {tensor.dtype}: add up, then divide as you mean to round")
    return _OPS[op]


def _check_writable(name: str, tensor: Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(
            f"{name} writes into a tensor of shape {list(tensor.shape)} and strides {list(tensor.stride())}: "
            "it must be contiguous, or the result would land in a copy"
        )


def _check_parts(name: str, whole: Tensor, part: Tensor, ranks: int) -> None:
    if whole.dtype != part.dtype or whole.numel() != ranks * part.numel():
        raise ValueError(
            f"{name} over {ranks} ranks needs a whole that is {ranks} times its part, of one dtype: they are "
            f"{whole.dtype} {list(whole.shape)} and {part.dtype} {list(part.shape)}"
        )


def _check_splits(splits: list[int] | None, rows: Tensor, ranks: int) -> None:
    length = rows.shape[0]
    if splits is None and length % ranks:
        raise ValueError(f"all_to_all over {ranks} ranks cannot split {length} rows evenly: name the splits")
    if splits is not None and (len(splits) != ranks or sum(splits) != length or min(splits) < 0):
        raise ValueError(f"all_to_all over {ranks} ranks needs {ranks} splits that add up to {length}: {splits}")


def _overlap(part: Tensor, whole: Tensor) -> bool:
    """Whether two tensors without gaps have elements in common."""
    if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return False
    start = part.storage_offset() - whole.storage_offset()
    return -part.numel() < start < whole.numel()


def _copy(output: Tensor, tensor: Tensor) -> Finished:
    with torch.no_grad():
        output.view(-1).copy_(tensor.reshape(-1))
    return FINISHED
