"""Collectives of the CPU: gloo, with its slow reduce-scatter and all-gather replaced.

gloo's own reduce-scatter costs more than its all-reduce, and its all-gather copies what it has gathered once more,
from memory of its own. Messages between each two ranks, received where they belong or added up there, move the same
bytes and no others: reduce-scatter is several times faster so, and adds in rank order, so that its result depends on
nothing but its inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import (
    FINISHED,
    Collectives,
    Handle,
    check_all_gather,
    check_reduce_scatter,
    is_alone,
)

GATHER, SCATTER = 1, 2
"""Tags of messages, which others between the same ranks do not have."""
SPARES = 1
"""Buffers that are kept for the next reduce-scatter: memory that is new costs more than what is written into it."""


class CPUCollectives(Collectives):
    """gloo."""

    def __init__(self) -> None:
        self._spares: list[Tensor] = []
        # What a socket does not take at once is copied by the thread that sends.
        self._beside = ThreadPoolExecutor(1, "evocore-messages")

    def all_gather(
        self, output: Tensor, shard: Tensor, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        """As the contract."""
        if is_alone(group) or output.numel() == 0:
            return super().all_gather(output, shard, group)
        check_all_gather(output, shard, group)
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        parts = output.detach().view(ranks, *shard.shape)

        def exchange() -> _Messages:
            if parts[rank].data_ptr() != shard.data_ptr():
                parts[rank].copy_(shard.detach())
            messages = _Messages()
            for source, destination in _partners(rank, ranks):
                messages.receive(parts[source], source, GATHER, group)
                messages.send(parts[rank], destination, GATHER, group)
            return messages

        return _under_way(_Begun(self._beside.submit(exchange)), asynchronous)

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
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        mine = tensor.detach().contiguous().view(ranks, *shard.shape)
        buffer, arriving = self._room(tensor.dtype, (ranks - 1, *shard.shape))
        partners = _partners(rank, ranks)

        def exchange() -> _Messages:
            messages = _Messages()
            for place, (source, destination) in zip(arriving, partners, strict=True):
                messages.receive(place, source, SCATTER, group)
                messages.send(mine[destination], destination, SCATTER, group)
            return messages

        begun = _Begun(self._beside.submit(exchange))
        parts = [mine[rank]] * ranks
        for place, (source, _) in zip(arriving, partners, strict=True):
            parts[source] = place
        done = _SumWhenArrived(begun, parts, rank, shard.detach(), op == "avg", lambda: self._keep(buffer))
        return _under_way(done, asynchronous)

    def _room(self, dtype: torch.dtype, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Memory for a tensor, and the tensor."""
        size = prod(shape) * dtype.itemsize
        large = [spare for spare in self._spares if len(spare) >= size]
        buffer = min(large, key=len) if large else torch.empty(size, dtype=torch.uint8)
        self._spares = [spare for spare in self._spares if spare is not buffer]
        return buffer, buffer[:size].view(dtype).view(shape)

    def _keep(self, buffer: Tensor) -> None:
        self._spares = sorted([*self._spares, buffer], key=len)[-SPARES:]


def _partners(rank: int, ranks: int) -> list[tuple[int, int]]:
    """From whom this rank receives and to whom it sends, so that all pairs of ranks are at work at any time."""
    return [((rank - distance) % ranks, (rank + distance) % ranks) for distance in range(1, ranks)]


def _under_way(handle: Handle, asynchronous: bool) -> Handle:
    if asynchronous:
        return handle
    handle.wait()
    return FINISHED


class _Messages:
    """Messages under way, all of which must arrive."""

    def __init__(self) -> None:
        self._works: list[dist.Work] = []

    def send(self, tensor: Tensor, destination: int, tag: int, group: dist.ProcessGroup | None) -> None:
        self._add(dist.isend(tensor, group=group, group_dst=destination, tag=tag))

    def receive(self, tensor: Tensor, source: int, tag: int, group: dist.ProcessGroup | None) -> None:
        self._add(dist.irecv(tensor, group=group, group_src=source, tag=tag))

    def wait(self) -> None:
        while self._works:
            self._works[0].wait()
            self._works.pop(0)

    def _add(self, work: dist.Work | None) -> None:
        assert work is not None  # this rank is in the group
        self._works.append(work)


class _Begun:
    """Messages that another thread sends."""

    def __init__(self, begun: Future[_Messages]) -> None:
        self._begun = begun

    def wait(self) -> None:
        self._begun.result().wait()


class _SumWhenArrived:
    """Waits for the parts of all ranks and adds them up, in rank order.

    Args:
        parts: of each rank; all but that of ``rank`` may be written to.
        shard: where the sum goes, which may be where the part of ``rank`` lies.
        done: called when the parts are not needed any more.
    """

    def __init__(
        self, arriving: Handle, parts: list[Tensor], rank: int, shard: Tensor, average: bool, done: Callable[[], None]
    ) -> None:
        self._arriving, self._rank, self._shard, self._average, self._done = arriving, rank, shard, average, done
        self._parts: list[Tensor] | None = parts

    def wait(self) -> None:
        if self._parts is None:
            return
        self._arriving.wait()
        first, *others = self._parts
        if not others:
            self._shard.copy_(first)
        elif first.dtype.is_floating_point and first.itemsize < 4:
            total = first.float()
            for part in others:
                total += part
            self._shard.copy_(total.div_(len(self._parts)) if self._average else total)
        else:
            total, scratch = first, self._parts[1 if self._rank == 0 else 0]
            for part in others[:-1]:
                total = torch.add(total, part, out=scratch)
            torch.add(total, others[-1], out=self._shard)
            if self._average:
                self._shard /= len(self._parts)
        self._parts = None
        self._done()
