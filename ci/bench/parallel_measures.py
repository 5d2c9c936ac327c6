"""What the ranks of a benchmark of the parallel runtime do: train in turns, replay exchanges, watch waits and memory.

Each function is called on every rank of a pool and returns plain numbers of that rank. A turn begins with a step that
is not timed, so that timed steps begin with what a step before them has left under way, as they end.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from parallel_trainings import OVERLAP, PEERS, TINY, Sizes, Training, backend_named, by_hand, ours
from torch import Tensor

from evocore.backend import Backend
from evocore.ops.collectives import Collectives, Handle
from evocore.parallel.recording import Event, RecordingCollectives
from evocore.parallel.zero import ZeroOptions


@dataclass(frozen=True)
class Turns:
    """``rounds`` times each candidate gets a turn of ``steps`` timed steps."""

    rounds: int
    steps: int


@dataclass(frozen=True)
class Timed:
    """One candidate on one rank, a number per turn.

    Attributes:
        seconds: of a step.
        processor: seconds of a step that all threads of this process have computed, those of exchanges among them;
            a busy machine changes them less.
        blocked: seconds of it in which this thread was held up by gathers.
        loss: of the last step.
    """

    seconds: list[float]
    processor: list[float]
    blocked: list[float]
    loss: float


def overhead(sizes: Sizes, turns: Turns) -> dict[str, Any]:
    """A step of ZeRO without overlap; its compute alone, on all ranks at once; its exchanges alone, one by one."""
    world, recorders = dist.get_world_size(), []

    def recorded(own: Collectives) -> Collectives:
        recorders.append(RecordingCollectives(own))
        return recorders[0]

    step = ours(sizes, ZeroOptions(), recorded, zero1=dict(size=-1))
    step.step()
    recorders[0].clear()
    step.step()
    events = [event for event in recorders[0].events if event.kind == "start"]
    backend = backend_named(sizes.backend)
    candidates = {
        "step": step,
        "compute": by_hand(sizes, updated=1 / world),
        "exchanges": replayed(events, backend),
    }
    calls = [(event.op, event.bytes) for event in events]
    return {"timed": in_turns(candidates, turns, backend), "exchanges": calls, "parameters": step.parameters}


def zero(sizes: Sizes, turns: Turns) -> dict[str, Any]:
    """ZeRO with its exchanges beside compute, and the peers."""
    candidates = {"evocore": ours(sizes, OVERLAP, zero1=dict(size=-1))}
    candidates |= {name: make(sizes) for name, make in PEERS.items()}
    return {"timed": in_turns(candidates, turns, backend_named(sizes.backend))}


def peak_memory(sizes: Sizes, candidate: str) -> dict[str, int]:
    """The peak of a process that does nothing but train, above what it had before; and what it holds by formula."""
    backend = backend_named(sizes.backend)
    device = backend.device(dist.get_rank())

    def train(sizes: Sizes) -> Training:
        training = ours(sizes, OVERLAP, zero1=dict(size=-1)) if candidate == "evocore" else PEERS[candidate](sizes)
        for _ in range(3):
            training.step()
        training.finish()
        return training

    train(replace(TINY, backend=sizes.backend, dtype=sizes.dtype))  # what is imported and made once counts as before
    backend.reset_peak_memory(device)
    before = backend.memory(device)["peak"]
    held = train(sizes).held
    return {"peak": backend.memory(device)["peak"] - before, "held": held}


def gathered_weights(sizes: Sizes, turns: Turns, sequence: int) -> dict[str, Any]:
    """isp with and without overlap; ``sequence`` ranks share the tokens of that many micro-batches."""
    sizes = replace(sizes, tokens=sequence * sizes.tokens)
    candidates = {}
    for name, overlap in (("at once", False), ("ahead", True)):
        clocks: list[GatherClock] = []

        def watched(own: Collectives, clocks: list[GatherClock] = clocks) -> Collectives:
            clocks.append(GatherClock(own))
            return clocks[0]

        training = ours(
            sizes,
            OVERLAP,
            watched,
            tensor=dict(size=sequence, mode="isp"),
            weight=dict(size=dist.get_world_size(), overlap=overlap, forward_overlap_per="layer"),
        )
        candidates[name] = replace(training, blocked=lambda clock=clocks[0]: clock.seconds)  # type: ignore[misc]
    return {"timed": in_turns(candidates, turns, backend_named(sizes.backend))}


def alone(sizes: Sizes, turns: Turns) -> dict[str, Any]:
    """One process with the runtime, and the loop that one writes by hand."""
    candidates = {"evocore": ours(sizes, ZeroOptions()), "by hand": by_hand(sizes)}
    return {"timed": in_turns(candidates, turns, backend_named(sizes.backend))}


# --- in turns -------------------------------------------------------------------------------------------------------


def in_turns(candidates: dict[str, Training], turns: Turns, backend: Backend) -> dict[str, Timed]:
    """Time all candidates; those that are slowed down by a busy machine are slowed down alike."""
    device = backend.device(dist.get_rank())
    timed = {name: Timed([], [], [], 0.0) for name in candidates}
    names = list(candidates)
    for number in range(turns.rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            candidate = candidates[name]
            gc.collect()
            dist.barrier()
            candidate.step()
            backend.synchronize(device)
            before = time.perf_counter(), time.process_time(), candidate.blocked()
            for _ in range(turns.steps):
                loss = candidate.step()
            backend.synchronize(device)
            after = time.perf_counter(), time.process_time(), candidate.blocked()
            candidate.finish()
            lists = timed[name].seconds, timed[name].processor, timed[name].blocked
            for found, start, end in zip(lists, before, after, strict=True):
                found.append((end - start) / turns.steps)
            timed[name] = replace(timed[name], loss=float(loss))
    return timed


def replayed(events: Sequence[Event], backend: Backend) -> Training:
    """The same exchanges among all ranks, in float32, one after another and nothing else."""
    rank, world = dist.get_rank(), dist.get_world_size()
    collectives, device = backend.collectives(), backend.device(rank)
    calls: list[Callable[[], object]] = []
    for event in events:
        assert event.ranks == tuple(range(world)), event
        whole = torch.ones(event.bytes // torch.float32.itemsize, device=device)
        part = torch.ones(whole.numel() // world, device=device)
        if event.op == "all_reduce":
            calls.append(lambda whole=whole: collectives.all_reduce(whole, op="max"))  # type: ignore[misc]
        elif event.op == "reduce_scatter":
            calls.append(lambda whole=whole, part=part: collectives.reduce_scatter(part, whole))  # type: ignore[misc]
        else:
            assert event.op == "all_gather", event
            calls.append(lambda whole=whole, part=part: collectives.all_gather(whole, part))  # type: ignore[misc]

    def step() -> Tensor:
        for call in calls:
            call()
        return torch.zeros(())

    return Training(step)


class GatherClock(RecordingCollectives):
    """Adds up how long the calling thread is held up by all_gather: to start it, and to wait for it.

    On a device whose collectives run on a stream of their own the thread waits for nothing, and this says nothing.
    """

    def __init__(self, inner: Collectives) -> None:
        super().__init__(inner)
        self.seconds = 0.0

    def all_gather(
        self, output: Tensor, shard: Tensor, group: dist.ProcessGroup | None = None, *, asynchronous: bool = False
    ) -> Handle:
        start = time.perf_counter()
        handle = super().all_gather(output, shard, group, asynchronous=asynchronous)
        self.seconds += time.perf_counter() - start
        return _TimedHandle(handle, self)


class _TimedHandle:
    def __init__(self, handle: Handle, clock: GatherClock) -> None:
        self._handle, self._clock = handle, clock

    def wait(self) -> object:
        start = time.perf_counter()
        result = self._handle.wait()
        self._clock.seconds += time.perf_counter() - start
        return result
