"""Checks of collectives that are under way while others are, and of those in groups of some of the ranks."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.ops.collectives import Handle
from evocore.testing.conformance.ranks import Ranks, doing, everybodys, expect, numbers

ROWS = 64
UNDER_WAY = 5
"""Calls at once: as many as ``_start`` starts."""


def check_asynchronous(r: Ranks) -> None:
    """Several calls under way at once: what they give is there after ``wait()``, and stays.

    Ranks come at different times. Each call in turn is the first that is waited for, as a wait for another may hide
    that its own does nothing; all are waited for twice, and then what went in is overwritten.
    """
    _start_library(r)
    dtypes = r.dtypes()
    for turn in range(max(len(dtypes), UNDER_WAY)):
        dtype = dtypes[turn % len(dtypes)]
        time.sleep(0.01 * r.rank)
        with doing("collectives under way at once", dtype):
            started = _start(r, dtype)
        _finish(started, dtype, first=turn % UNDER_WAY)


def check_at_once(r: Ranks) -> None:
    """Calls with ``asynchronous=True`` return although no other rank has come yet."""
    _start_library(r)
    dtype = torch.float32
    if r.rank:
        r.hear("started", 0, "rank 0 is still in a call with asynchronous=True: return before the other ranks come")
    started = _start(r, dtype)
    if not r.rank:
        r.tell("started")
    _finish(started, dtype)


def _finish(started: list[_Call], dtype: torch.dtype, first: int = 0) -> None:
    """Wait for one call first, then for the others, the latest first."""
    others = started[:first] + started[first + 1 :]
    for call in (started[first], *reversed(others)):
        with doing(f"wait() for {call.name}", dtype):
            call.handle.wait()
            call.handle.wait()
            expect(call.result, call.expected, "return only when the result may be read")
    for call in started:
        if call.given is not call.result:
            call.given.fill_(77)
    for call in started:
        with doing(f"{call.name} with asynchronous=True", dtype):
            expect(call.result, call.expected, "neither read what went in nor write the result after wait()")


def _start_library(r: Ranks) -> None:
    """Libraries connect the ranks at the first call of each kind, which may wait for all of them."""
    _finish(_start(r, torch.float32), torch.float32)
    r.collectives.barrier()


class _Call(NamedTuple):
    """One that is under way: what went in, where the result comes (which may be the same), and what it must be."""

    name: str
    handle: Handle
    given: Tensor
    result: Tensor
    expected: Tensor


def _start(r: Ranks, dtype: torch.dtype) -> list[_Call]:
    c, mine, source = r.collectives, numbers(r.rank, ROWS), r.world - 1
    few, many = everybodys(range(r.world), ROWS), everybodys(range(r.world), ROWS * r.world)
    part = slice(ROWS * r.rank, ROWS * (r.rank + 1))
    reduced, sent, shard = r.put(mine, dtype), r.put(mine, dtype), r.put_with_gaps(mine, dtype)
    whole, parts = r.put(many[r.rank], dtype), r.put(many[r.rank], dtype)
    gathered, scattered, exchanged = (r.empty(rows, dtype) for rows in (ROWS * r.world, ROWS, ROWS * r.world))
    handles = [
        c.all_reduce(reduced, asynchronous=True),
        c.all_gather(gathered, shard, asynchronous=True),
        c.reduce_scatter(scattered, whole, asynchronous=True),
        c.all_to_all(exchanged, parts, asynchronous=True),
        c.broadcast(sent, source, asynchronous=True),
    ]
    return [
        _Call("all_reduce", handles[0], reduced, reduced, few.sum(0)),
        _Call("all_gather", handles[1], shard, gathered, few.flatten(0, 1)),
        _Call("reduce_scatter", handles[2], whole, scattered, many.sum(0)[part]),
        _Call("all_to_all", handles[3], parts, exchanged, many[:, part].flatten(0, 1)),
        _Call("broadcast", handles[4], sent, sent, few[source]),
    ]


def check_groups(r: Ranks) -> None:
    """Groups made by ``new_group``: even and odd ranks at the same time, all but the first, each for itself."""
    layouts = [
        [list(range(0, r.world, 2)), list(range(1, r.world, 2))],
        [list(range(1, r.world))],
        [[rank] for rank in range(r.world)],
    ]
    for layout in layouts:
        groups = [(ranks, r.backend.new_group(ranks)) for ranks in layout]
        for ranks, group in groups:
            if r.rank in ranks:
                for dtype in r.dtypes():
                    _check_group(r, ranks, group, dtype)
                with doing(f"agree in the group of ranks {ranks}", torch.float32):
                    texts = r.collectives.agree(str(r.rank), group)
                    expect(torch.tensor([float(text) for text in texts]), torch.tensor(ranks), "ask the group alone")
                r.collectives.barrier(group)
        r.collectives.barrier()


def _check_group(r: Ranks, ranks: list[int], group: dist.ProcessGroup, dtype: torch.dtype) -> None:
    c, size, place = r.collectives, len(ranks), ranks.index(r.rank)
    mine = slice(2 * place, 2 * place + 2)
    results: dict[str, tuple[Tensor, Tensor]] = {}
    with doing(f"in the group of ranks {ranks}, collectives", dtype):
        x = r.put(numbers(r.rank, 2), dtype)
        c.all_reduce(x, group)
        results["all_reduce"] = x, everybodys(ranks, 2).sum(0)
        gathered = r.empty(2 * size, dtype)
        c.all_gather(gathered, r.put(numbers(r.rank, 2), dtype), group)
        results["all_gather"] = gathered, everybodys(ranks, 2).flatten(0, 1)
        shard = r.empty(2, dtype)
        c.reduce_scatter(shard, r.put(numbers(r.rank, 2 * size), dtype), group)
        results["reduce_scatter"] = shard, everybodys(ranks, 2 * size).sum(0)[mine]
        exchanged = r.empty(2 * size, dtype)
        c.all_to_all(exchanged, r.put(numbers(r.rank, 2 * size), dtype), group)
        results["all_to_all"] = exchanged, everybodys(ranks, 2 * size)[:, mine].flatten(0, 1)
        x = r.put(numbers(r.rank, 2), dtype)
        c.broadcast(x, ranks[-1], group)
        results["broadcast"] = x, numbers(ranks[-1], 2)
    for name, (found, expected) in results.items():
        with doing(f"{name} in the group of ranks {ranks}", dtype):
            expect(found, expected, "count the group's own ranks; only source and destination are global")
