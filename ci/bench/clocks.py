"""How a step is timed: clocks of the host and of devices, candidates in turns, and what a device can do at best.

Device work is asynchronous: on a device it is timed by its events, and a large buffer is overwritten before each
repetition, so that no input waits in a cache. Nothing here names a vendor; a device is what PyTorch calls it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch

Step = Callable[[], object]
FLUSH_BYTES = 512 * 2**20
"""Written before each repetition: larger than any cache, and long enough to queue the next launch behind."""
SLOW = 8
"""A candidate this many times slower than the fastest is repeated only a few times."""


class Clock(Protocol):
    """Starts a step and returns a reading in seconds, to be taken after ``settle``."""

    def time(self, step: Step) -> Callable[[], float]: ...

    def settle(self) -> None: ...


class HostClock:
    """For the CPU, where a step is done when it returns."""

    def time(self, step: Step) -> Callable[[], float]:
        start = time.perf_counter()
        step()
        taken = time.perf_counter() - start
        return lambda: taken

    def settle(self) -> None:
        return None


class EventClock:
    """For any device with events."""

    def __init__(self, device: torch.device) -> None:
        self._module: Any = torch.get_device_module(device)
        self._flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def time(self, step: Step) -> Callable[[], float]:
        start, end = (self._module.Event(enable_timing=True) for _ in range(2))
        self._flush.zero_()
        start.record()
        step()
        end.record()
        return lambda: start.elapsed_time(end) / 1e3

    def settle(self) -> None:
        self._module.synchronize()


def clock_of(device: torch.device) -> Clock:
    return HostClock() if device.type == "cpu" else EventClock(device)


def in_turns(
    steps: dict[str, Step], clock: Clock, seconds: float, least: int = 3
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time steps that are warm already, in turns for about so long and at least ``least`` times each.

    Returns:
        Seconds of each step, and the errors of those that raised, which leave the others alone.
    """
    readings: dict[str, list[Callable[[], float]]] = {label: [] for label in steps}
    errors: dict[str, str] = {}

    def turn(labels: Iterable[str]) -> None:
        for label in labels:
            try:
                readings[label].append(clock.time(steps[label]))
            except Exception as error:  # noqa: BLE001 - a stranger's kernel can raise anything; it becomes a row
                errors[label] = told(error)

    turn(steps)
    clock.settle()
    guess = {label: readings.pop(label)[0]() for label in steps if label not in errors}
    readings = {label: [] for label in guess}
    quick = [label for label in guess if guess[label] <= SLOW * min(guess.values())]
    rounds = int((seconds - sum(guess.values())) / max(sum(guess[label] for label in quick), 1e-6))
    for number in range(max(least, min(rounds, 100))):
        turn(label for label in (guess if number < least else quick) if label not in errors)
        if number % 10 == 9:
            clock.settle()  # now and then, so that what is queued stays short
    clock.settle()
    return {label: [read() for read in readings[label]] for label in guess if label not in errors}, errors


def told(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]


def copy_rate(device: torch.device, clock: Clock, nbytes: int) -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    source = torch.randn(nbytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_half(lambda: target.copy_(source), clock)


def product_rate(device: torch.device, clock: Clock, dtype: torch.dtype, size: int) -> float:
    """FLOP per second of a matrix product of this size, on random numbers: zeros run faster."""
    a, b = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    return 2 * size**3 / _best_half(lambda: a @ b, clock)


def _best_half(step: Step, clock: Clock) -> float:
    """Median of the faster half: a yardstick is what the device can do when nothing disturbs it."""
    for _ in range(3):
        step()
    readings = [clock.time(step) for _ in range(20)]
    clock.settle()
    return statistics.median(sorted(reading() for reading in readings)[:10])
