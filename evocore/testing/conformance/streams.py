"""Checks that a device's streams and events order work, which nothing else of the kit would notice on a fast device.

Each check queues work that takes a while on one stream and looks, from another stream or from the host, for what it
leaves behind. On streams only operators that write into given tensors are queued, so that a stream that is no more
than a list of deferred calls can be checked, too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evocore.backend import Backend
from evocore.testing.conformance.calls import during
from evocore.testing.conformance.check import HOST
from evocore.testing.conformance.facilities import require

TURNS = 3
LASTING = 4e-3
"""Seconds of work: hundreds of times what it takes to queue a call."""
SIZES, MOST = (64, 256, 1024, 2048), 24
"""Of square matrices, and how many products of them are queued at most."""

Order = Callable[[Any, Any, Any], None]
"""Given a stream, one that is to wait for it, and an event."""


def _by_event(first: Any, second: Any, event: Any) -> None:
    event.record(first)
    event.wait(second)


def _by_stream_and_event(first: Any, second: Any, event: Any) -> None:
    event.record(first)
    second.wait_event(event)


def _by_stream(first: Any, second: Any, event: Any) -> None:
    second.wait_stream(first)


ORDERS: dict[str, Order] = {
    "event.record(first), event.wait(second)": _by_event,
    "event.record(first), second.wait_event(event)": _by_stream_and_event,
    "second.wait_stream(first)": _by_stream,
}


class _SlowSum:
    """A sum that takes a device milliseconds to come to, queued in microseconds: of ever larger matrix products."""

    def __init__(self, backend: Backend, device: torch.device) -> None:
        for size in SIZES:
            self._identity = torch.eye(size, device=device)
            self._product = torch.zeros(size, size, device=device)
            self.total = torch.zeros(size, size, device=device)
            seconds = min(self._seconds(backend, device) for _ in range(2))
            self._products = min(math.ceil(LASTING / seconds), MOST)
            if seconds * MOST >= LASTING:
                break

    def _seconds(self, backend: Backend, device: torch.device) -> float:
        backend.synchronize(device)
        start = time.perf_counter()
        torch.mm(self.total, self._identity, out=self._product)
        backend.synchronize(device)
        return time.perf_counter() - start

    def add_one(self) -> None:
        for _ in range(self._products):
            torch.mm(self.total, self._identity, out=self._product)
            self.total.copy_(self._product)
        self.total.add_(1)


def check_streams(backend: Backend) -> None:
    """A new stream is another one than the current one, and is the current one while work is queued on it."""
    device = backend.device()
    side = backend.stream(device)
    if device.type != HOST:  # which has no streams: the work is done where it is queued
        require(
            side != backend.current_stream(device),
            "stream() returned the current stream: return a new one, or nothing overlaps",
        )
        with backend.on_stream(side):
            require(
                backend.current_stream(device) == side,
                "current_stream() is another one inside on_stream(stream): make that stream the current one",
            )
    work = _SlowSum(backend, device)
    backend.synchronize(device)
    with backend.on_stream(side):
        for _ in range(TURNS):
            work.add_one()
    backend.synchronize(device)
    require(
        _all_equal(work.total, TURNS), "work queued on one stream is not done in order: run a stream's work in turn"
    )


def check_events(backend: Backend) -> None:
    """What a second stream does after it waits for an event sees what the first did before the event."""
    device = backend.device()
    for way, order in ORDERS.items():
        with during(way):
            first, second = backend.stream(device), backend.stream(device)
            work = _SlowSum(backend, device)
            seen = torch.zeros_like(work.total)
            backend.synchronize(device)
            for _ in range(TURNS):
                with backend.on_stream(first):
                    work.add_one()
                order(first, second, backend.event())
                with backend.on_stream(second):
                    seen.copy_(work.total)
                order(second, first, backend.event())
            backend.synchronize(device)
            require(
                _all_equal(seen, TURNS),
                f"the second stream read {_shown(seen)} where the first had written {TURNS}: let a stream that waits "
                "for an event start what follows only when all that came before the event is done",
            )


def check_synchronize(backend: Backend) -> None:
    """The host reads what the device has copied to it once it has waited for an event, or for the device."""
    device = backend.device()
    for way in ("event.synchronize()", "synchronize(device)"):
        with during(way):
            stream, event, work = backend.stream(device), backend.event(), _SlowSum(backend, device)
            arrived = torch.zeros(work.total.shape)
            arrived = arrived.pin_memory() if backend.pins_host_memory() else arrived
            backend.synchronize(device)
            with backend.on_stream(stream):
                work.add_one()
                arrived.copy_(work.total, non_blocking=True)
            event.record(stream)
            if way.startswith("event"):
                event.synchronize()
                require(
                    bool(event.query()), "query() is False after it: an event that was waited for has come to pass"
                )
            else:
                backend.synchronize(device)
            require(
                _all_equal(arrived, 1),
                f"the host read {_shown(arrived)} before the device had written 1: return only when the work queued "
                "before is done",
            )
            backend.synchronize(device)


def _all_equal(x: Tensor, value: float) -> bool:
    return bool((x == value).all())


def _shown(x: Tensor) -> str:
    return ", ".join(f"{number:g}" for number in x.unique()[:3].tolist())
