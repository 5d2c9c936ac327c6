"""A device that does nothing until it must: its streams are lists of calls, which run as late and in as odd an order
as events allow. Whoever forgets to wait sees old numbers, every time.

Only operators that write into given tensors can be queued; PyTorch's processor does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.utils._python_dispatch import TorchDispatchMode

from evocore.backends.cpu.device import CPUBackend


class Stream:
    """Calls in turn. One that returns False waits for another stream, and is tried again.

    Args:
        siblings: all streams of the device.
    """

    def __init__(self, siblings: list[Stream]) -> None:
        self.siblings = siblings
        self.calls: list[Callable[[], object]] = []
        self.done = 0
        siblings.append(self)

    def wait_event(self, event: Event) -> None:
        self.calls.append(event.query)

    def wait_stream(self, stream: Stream) -> None:
        event = Event()
        event.record(stream)
        self.wait_event(event)

    def run(self) -> bool:
        """Whether anything was done."""
        before = self.done
        while self.done < len(self.calls) and self.calls[self.done]() is not False:
            self.done += 1
        return self.done > before


class Event:
    stream: Stream | None = None
    place = 0

    def record(self, stream: Stream) -> None:
        self.stream, self.place = stream, len(stream.calls)

    def wait(self, stream: Stream) -> None:
        stream.calls.append(self.query)

    def query(self) -> bool:
        return self.stream is None or self.stream.done >= self.place

    def synchronize(self) -> None:
        if self.stream is not None:
            run_all(self.stream.siblings)


def run_all(streams: list[Stream]) -> None:
    """The latest stream first."""
    while any(stream.run() for stream in reversed(streams)):
        pass


class Queue(TorchDispatchMode):
    """Puts what is called inside it on a stream."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self._stream = stream

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        named = kwargs or {}
        self._stream.calls.append(lambda: func(*args, **named))
        return named.get("out", args[0])


class DeferredBackend(CPUBackend):
    streams: type[Stream] = Stream
    events: type[Event] = Event

    def __init__(self) -> None:
        self._streams: list[Stream] = []
        self._current = [self.streams(self._streams)]

    def stream(self, device):
        return self.streams(self._streams)

    def current_stream(self, device):
        return self._current[-1]

    @contextmanager
    def on_stream(self, stream) -> Iterator[None]:
        self._current.append(stream)
        try:
            with Queue(stream):
                yield
        finally:
            self._current.pop()

    def event(self):
        return self.events()

    def synchronize(self, device):
        run_all(self._streams)
