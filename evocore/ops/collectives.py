"""Contract of the collectives: what the parallel runtime asks of a device's communication library.

The default goes through ``torch.distributed``; a backend overrides what its library does better in another way. Every
call takes the process group, works on contiguous tensors of the backend's device, and with ``asynchronous=True``
returns a handle whose ``wait()`` must be called before the result is read.
"""

from __future__ import annotations

from typing import Protocol

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


class Collectives:
    """Collectives through ``torch.distributed``.

    ``group`` is a process group or None for all processes. Sizes: W is the number of ranks in the group.
    """

    def all_reduce(
        self, tensor: Tensor, group: dist.ProcessGroup | None = None, *, op: str = "sum", asynchronous: bool = False
    ) -> Handle:
        """Reduce in place over the group; ``op`` is sum, avg, max or min."""
        return dist.all_reduce(tensor, op=_OPS[op], group=group, async_op=asynchronous) or FINISHED

    def all_gather(
        self, output: Tensor, shard: Tensor, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        """Concatenate the equal shards of all ranks along dimension 0 into ``output``, W times as long."""
        return dist.all_gather_into_tensor(output, shard, group=group, async_op=asynchronous) or FINISHED

    def reduce_scatter(
        self,
        shard: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        op: str = "sum",
        asynchronous: bool = False,
    ) -> Handle:
        """Reduce ``tensor`` over the group and keep this rank's part of dimension 0 in ``shard``; op is sum or avg."""
        return dist.reduce_scatter_tensor(shard, tensor, op=_OPS[op], group=group, async_op=asynchronous) or FINISHED

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
        """Send part r of dimension 0 to rank r and receive one part from each; None splits evenly."""
        work = dist.all_to_all_single(output, tensor, output_splits, input_splits, group=group, async_op=asynchronous)
        return work or FINISHED

    def broadcast(
        self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        """Overwrite ``tensor`` by that of global rank ``source``."""
        return dist.broadcast(tensor, source, group=group, async_op=asynchronous) or FINISHED

    def send(self, tensor: Tensor, destination: int, group: dist.ProcessGroup | None = None) -> Handle:
        """Send to global rank ``destination``; the tensor must stay untouched until the handle is waited for."""
        return dist.isend(tensor, destination, group=group) or FINISHED

    def recv(self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None) -> Handle:
        """Receive from global rank ``source`` into ``tensor``."""
        return dist.irecv(tensor, source, group=group) or FINISHED

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        """Wait until every rank of the group is here."""
        dist.barrier(group=group)

    def agree(self, mine: str, group: dist.ProcessGroup | None = None) -> list[str]:
        """The texts of all ranks in rank order, for checks before the first step (slow, never in a step)."""
        texts: list[str] = [""] * dist.get_world_size(group)
        dist.all_gather_object(texts, mine, group=group)
        return texts


_OPS = {"sum": dist.ReduceOp.SUM, "avg": dist.ReduceOp.AVG, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
