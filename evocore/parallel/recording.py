"""Writes down every exchange between ranks, to be counted, compared with a plan, or looked at for what overlaps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import FINISHED, Collectives, Handle, group_size, is_alone


@dataclass(frozen=True)
class Event:
    """One moment of a run, as this rank saw it.

    Attributes:
        op: the method of ``Collectives``, or the text of a mark.
        ranks: global ranks that take part; of a message the sender and the receiver.
        bytes: of this rank's payload: the whole (gathered, unreduced) tensor for all_gather and reduce_scatter, what
            goes in for all_to_all, the tensor otherwise.
        kind: ``start`` of an exchange, ``wait`` until it is done (the first one), or a ``mark`` of something else.
        number: counts the exchanges; a wait has that of its start, a mark has 0.
    """

    op: str
    ranks: tuple[int, ...]
    bytes: int
    kind: Literal["start", "wait", "mark"]
    number: int


class RecordingCollectives(Collectives):
    """Passes everything on and keeps a list of it; a synchronous call starts and waits at once.

    Args:
        inner: does the work.

    Attributes:
        events: what happened so far, in this process's order.
    """

    def __init__(self, inner: Collectives) -> None:
        self.events: list[Event] = []
        self._inner = inner
        self._count = 0

    def mark(self, text: str) -> None:
        """Put something else into the sequence, such as a layer's compute."""
        self.events.append(Event(text, (), 0, "mark", 0))

    def totals(self) -> dict[tuple[str, tuple[int, ...]], tuple[int, int]]:
        """Calls and bytes by op and ranks."""
        totals: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {}
        for event in self.events:
            if event.kind == "start":
                calls, total = totals.get((event.op, event.ranks), (0, 0))
                totals[event.op, event.ranks] = calls + 1, total + event.bytes
        return totals

    def clear(self) -> None:
        """Forget the events; exchanges under way still get their wait."""
        self.events.clear()

    # --- the collectives --------------------------------------------------------------------------------------------

    def dtypes(self) -> frozenset[torch.dtype]:
        return self._inner.dtypes()

    def all_reduce(
        self, tensor: Tensor, group: dist.ProcessGroup | None = None, *, op: str = "sum", asynchronous: bool = False
    ) -> Handle:
        handle = self._inner.all_reduce(tensor, group, op=op, asynchronous=asynchronous)
        return self._record("all_reduce", _members(group), _bytes(tensor), handle, asynchronous)

    def all_gather(
        self, output: Tensor, shard: Tensor, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        handle = self._inner.all_gather(output, shard, group, asynchronous=asynchronous)
        return self._record("all_gather", _members(group), _bytes(output), handle, asynchronous)

    def reduce_scatter(
        self,
        shard: Tensor,
        tensor: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        op: str = "sum",
        asynchronous: bool = False,
    ) -> Handle:
        handle = self._inner.reduce_scatter(shard, tensor, group, op=op, asynchronous=asynchronous)
        return self._record("reduce_scatter", _members(group), _bytes(tensor), handle, asynchronous)

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
        handle = self._inner.all_to_all(
            output,
            tensor,
            group,
            output_splits=output_splits,
            input_splits=input_splits,
            asynchronous=asynchronous,
        )
        return self._record("all_to_all", _members(group), _bytes(tensor), handle, asynchronous)

    def broadcast(
        self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        handle = self._inner.broadcast(tensor, source, group, asynchronous=asynchronous)
        return self._record("broadcast", _members(group), _bytes(tensor), handle, asynchronous)

    def send(self, tensor: Tensor, destination: int, group: dist.ProcessGroup | None = None) -> Handle:
        handle = self._inner.send(tensor, destination, group)
        return self._record("send", (_me(), destination), _bytes(tensor), handle, asynchronous=True)

    def recv(self, tensor: Tensor, source: int, group: dist.ProcessGroup | None = None) -> Handle:
        handle = self._inner.recv(tensor, source, group)
        return self._record("recv", (source, _me()), _bytes(tensor), handle, asynchronous=True)

    def barrier(self, group: dist.ProcessGroup | None = None) -> None:
        self._inner.barrier(group)
        self._record("barrier", _members(group), 0, FINISHED, asynchronous=False)

    def agree(self, mine: str, group: dist.ProcessGroup | None = None) -> list[str]:
        texts = self._inner.agree(mine, group)
        self._record("agree", _members(group), len(mine.encode()), FINISHED, asynchronous=False)
        return texts

    def _record(self, op: str, ranks: tuple[int, ...], size: int, handle: Handle, asynchronous: bool) -> Handle:
        self._count += 1
        start = Event(op, ranks, size, "start", self._count)
        self.events.append(start)
        going = _RecordedHandle(handle, self.events, replace(start, kind="wait"))
        if not asynchronous:
            going.wait()
        return going


class _RecordedHandle:
    """Writes down the first wait."""

    def __init__(self, handle: Handle, events: list[Event], event: Event) -> None:
        self._handle, self._events, self._event = handle, events, event
        self._waited = False

    def wait(self) -> object:
        if not self._waited:
            self._waited = True
            self._events.append(self._event)
        return self._handle.wait()


def _members(group: dist.ProcessGroup | None) -> tuple[int, ...]:
    return tuple(range(group_size(None)) if group is None else dist.get_process_group_ranks(group))


def _me() -> int:
    return 0 if is_alone(None) else dist.get_rank()


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
