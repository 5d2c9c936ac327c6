"""What every rank does in each check of the collectives, compared with a plain computation on the host.

Each check runs on all ranks at once. Rank r holds ``numbers(r, rows)``, so each rank knows what it must end up with.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

import torch
from torch import Tensor

from evocore.ops.collectives import Collectives
from evocore.testing.conformance.calls import during
from evocore.testing.conformance.collective_groups import check_asynchronous, check_at_once, check_groups
from evocore.testing.conformance.facilities import NotHereError, require
from evocore.testing.conformance.ranks import COLUMNS, Ranks, doing, everybodys, expect, numbers

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(0),
    "max": lambda x: x.amax(0),
    "min": lambda x: x.amin(0),
    "avg": lambda x: x.mean(0),
}
LARGE = 100_003
"""Elements of a message in several pieces, and not a round number of them."""
SCALES = (1.0, 1e-3, 30.0, 0.2)
"""Of the ranks' numbers in it, so that the order of a sum shows."""


def check_all_reduce(r: Ranks) -> None:
    """sum, max and min, and avg of floating-point numbers, in place."""
    for dtype in r.dtypes():
        for op, reduction in REDUCTIONS.items():
            if op == "avg" and not dtype.is_floating_point:
                continue
            with doing(f"all_reduce {op}", dtype):
                x = r.put(numbers(r.rank, 3), dtype)
                r.collectives.all_reduce(x, op=op)
                expect(x, reduction(everybodys(range(r.world), 3)), "reduce the tensors of all ranks, in place")


def check_all_gather(r: Ranks) -> None:
    """Shards with and without gaps, and ones that lie where they belong, in the order of ranks."""
    for dtype in r.dtypes():
        for name, put in (("", r.put), (" from a shard with gaps", r.put_with_gaps)):
            with doing(f"all_gather{name}", dtype):
                output = r.empty(2 * r.world, dtype)
                r.collectives.all_gather(output, put(numbers(r.rank, 2), dtype))
                expect(
                    output, everybodys(range(r.world), 2).flatten(0, 1), "put the shard of rank i at place i of dim 0"
                )
        with doing("all_gather in place", dtype):
            output = r.empty(2 * r.world, dtype)
            shard = output[2 * r.rank : 2 * r.rank + 2]
            shard.copy_(r.put(numbers(r.rank, 2), dtype))
            r.collectives.all_gather(output, shard)
            expect(output, everybodys(range(r.world), 2).flatten(0, 1), "gather around a shard in its place")


def check_reduce_scatter(r: Ranks) -> None:
    """sum, and avg of floating-point numbers; into memory of its own and into any part of what goes in."""
    rows = 2 * r.world
    everything = everybodys(range(r.world), rows)
    mine = slice(2 * r.rank, 2 * r.rank + 2)
    for dtype in r.dtypes():
        for op in ("sum", "avg") if dtype.is_floating_point else ("sum",):
            expected = REDUCTIONS[op](everything)[mine]
            for name, put in (("", r.put), (" of a tensor with gaps", r.put_with_gaps)):
                with doing(f"reduce_scatter {op}{name}", dtype):
                    shard, whole = r.empty(2, dtype), put(numbers(r.rank, rows), dtype)
                    r.collectives.reduce_scatter(shard, whole, op=op)
                    expect(shard, expected, "reduce over the ranks and keep part i of dim 0 on rank i")
                    expect(whole, numbers(r.rank, rows), "leave the tensor that is reduced as it was")
        for part in (r.rank, (r.rank + 1) % r.world):
            with doing(f"reduce_scatter into part {part} of its own tensor", dtype):
                whole = r.put(numbers(r.rank, rows), dtype)
                target = slice(2 * part, 2 * part + 2)
                r.collectives.reduce_scatter(whole[target], whole)
                expected = numbers(r.rank, rows)
                expected[target] = everything.sum(0)[mine]
                expect(whole, expected, "write the shard, and nothing else of the tensor, after all of it was read")


def check_all_to_all(r: Ranks) -> None:
    """Equal splits, from tensors with and without gaps."""
    mine = slice(2 * r.rank, 2 * r.rank + 2)
    expected = everybodys(range(r.world), 2 * r.world)[:, mine].flatten(0, 1)
    for dtype in r.dtypes():
        for name, put in (("", r.put), (" of a tensor with gaps", r.put_with_gaps)):
            with doing(f"all_to_all{name}", dtype):
                output = r.empty(2 * r.world, dtype)
                r.collectives.all_to_all(output, put(numbers(r.rank, 2 * r.world), dtype))
                expect(output, expected, "put what comes from rank i at place i of dim 0")


def _counts(world: int) -> dict[str, list[list[int]]]:
    """Rows that go from each rank (first index) to each (second)."""
    return {
        "all different": [[(2 * source + 3 * target) % 5 for target in range(world)] for source in range(world)],
        "nothing from rank 0": [[3 * (source > 0)] * world for source in range(world)],
        "nothing to rank 0": [[2 * (target > 0) for target in range(world)] for _ in range(world)],
        "only from the last rank to the first": [
            [4 * (target == 0 and source == world - 1) for target in range(world)] for source in range(world)
        ],
        "nothing at all": [[0] * world for _ in range(world)],
    }


def check_uneven_all_to_all(r: Ranks) -> None:
    """Splits of any sizes, 0 among them, as tokens that are sent to their experts have."""
    for dtype in r.dtypes():
        for name, counts in _counts(r.world).items():
            with doing(f"all_to_all with uneven splits ({name})", dtype):
                sent, taken = counts[r.rank], [row[r.rank] for row in counts]
                output = r.empty(sum(taken), dtype)
                given = r.put_with_gaps(numbers(r.rank, sum(sent)), dtype)
                r.collectives.all_to_all(output, given, output_splits=taken, input_splits=sent)
                parts = [numbers(source, sum(row)).split(row)[r.rank] for source, row in enumerate(counts)]
                expect(output, torch.cat(parts), "send so many rows to each rank, and serve ranks with none")


def check_broadcast(r: Ranks) -> None:
    """From each rank in turn."""
    for dtype in r.dtypes():
        for source in range(r.world):
            with doing(f"broadcast from rank {source}", dtype):
                x = r.put(numbers(r.rank, 2), dtype)
                r.collectives.broadcast(x, source)
                expect(x, numbers(source, 2), "overwrite the tensor by that of the source")


def check_send_recv(r: Ranks) -> None:
    """Several messages around a ring arrive in the order in which they were sent; even ranks send first."""
    before, after = (r.rank - 1) % r.world, (r.rank + 1) % r.world

    def send(dtype: torch.dtype) -> None:
        with doing("send", dtype):
            given = [r.put(numbers(r.rank, rows), dtype) for rows in (1, 4, 2)]
            given += [r.put_with_gaps(numbers(r.rank, 4) + 1, dtype)]
            handles = [r.collectives.send(x, after) for x in given]
            for handle, x in zip(handles, given, strict=True):
                handle.wait()
                x.fill_(77)

    def recv(dtype: torch.dtype) -> None:
        with doing("recv", dtype):
            for rows, more in ((1, 0), (4, 0), (2, 0), (4, 1)):
                x = r.empty(rows, dtype)
                r.collectives.recv(x, before).wait()
                expect(x, numbers(before, rows) + more, "keep the order of messages between two ranks")

    for dtype in r.dtypes():
        for do in (recv, send) if r.rank % 2 else (send, recv):
            do(dtype)


def check_empty(r: Ranks) -> None:
    """Tensors of no elements, blocking and not."""
    for dtype in r.dtypes():
        for asynchronous in (False, True):
            x, neighbour = r.empty(0, dtype), r.rank ^ 1
            for call, handle in (
                ("all_reduce", lambda x=x, a=asynchronous: r.collectives.all_reduce(x, asynchronous=a)),
                ("all_gather", lambda x=x, a=asynchronous: r.collectives.all_gather(x, x, asynchronous=a)),
                ("reduce_scatter", lambda x=x, a=asynchronous: r.collectives.reduce_scatter(x, x, asynchronous=a)),
                ("all_to_all", lambda x=x, a=asynchronous: r.collectives.all_to_all(x, x, asynchronous=a)),
                ("broadcast", lambda x=x, a=asynchronous: r.collectives.broadcast(x, 0, asynchronous=a)),
                ("send", lambda x=x, n=neighbour: r.collectives.send(x, n)),
                ("recv", lambda x=x, n=neighbour: r.collectives.recv(x, n)),
            ):
                with doing(f"{call} of no elements", dtype):
                    handle().wait()


def check_large(r: Ranks) -> None:
    """Many numbers of different sizes: errors within rounding, and the same bits on every rank."""
    for dtype in r.floats():
        everything = torch.stack([_large(rank).to(dtype).double() for rank in range(r.world)])
        allowed = r.world * torch.finfo(dtype).eps * everything.abs().sum(0) + torch.finfo(dtype).tiny
        with doing("all_reduce of a large tensor", dtype):
            x = r.put(_large(r.rank), dtype)
            r.collectives.all_reduce(x)
            _within(x, everything.sum(0), allowed)
            digest = hashlib.sha256(x.cpu().view(torch.uint8).numpy().tobytes()).hexdigest()
            require(
                len(set(r.collectives.agree(digest))) == 1,
                "ranks end with different bits: give all of them one sum, or replicas of a model drift apart",
            )
        with doing("reduce_scatter of a large tensor", dtype):
            whole = r.put(_large(r.rank), dtype).repeat(r.world)
            shard = torch.zeros(LARGE, dtype=dtype, device=r.device)
            r.collectives.reduce_scatter(shard, whole)
            _within(shard, everything.sum(0), allowed)


def _large(rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(LARGE, generator=generator, dtype=torch.float64) * SCALES[rank % len(SCALES)]


def _within(found: Tensor, expected: Tensor, allowed: Tensor) -> None:
    ratio = ((found.cpu().double() - expected).abs() / allowed).max().item()
    require(
        ratio <= 1,
        f"an error is {ratio:.3g} times what rounding explains: add up all elements, at least in the dtype",
    )


def check_barrier_and_agree(r: Ranks) -> None:
    """Nobody leaves the barrier before the last has come; texts arrive in the order of ranks."""
    r.collectives.barrier()  # the library's start takes its time
    time.sleep(0.05 * (r.rank == r.world - 1))
    came = time.time()
    r.collectives.barrier()
    left = time.time()
    moments = [text.split() for text in r.collectives.agree(f"{came!r} {left!r}")]
    last, first = max(float(came) for came, _ in moments), min(float(left) for _, left in moments)
    require(
        first >= last, f"a rank left the barrier {last - first:.3f} s before the last came: wait on the host for all"
    )
    texts = r.collectives.agree(f"rank {r.rank}\n" * (r.rank + 1))
    expected = [f"rank {rank}\n" * (rank + 1) for rank in range(r.world)]
    require(texts == expected, f"agree() gave {texts}: return the texts of all ranks, in their order")


def check_refusals(r: Ranks) -> None:
    """What does not fit together is a ValueError on every rank before anything is sent: nobody is left waiting."""
    c, x, gaps = r.collectives, torch.ones(2 * r.world, 4, device=r.device), torch.ones(8, 8, device=r.device)[:, ::2]
    bad: dict[str, Callable[[], object]] = {
        "all_reduce into a tensor with gaps": lambda: c.all_reduce(gaps),
        "all_reduce of an unknown op": lambda: c.all_reduce(x, op="product"),
        "all_reduce avg of integers": lambda: c.all_reduce(x.to(torch.int32), op="avg"),
        "all_gather of a shard that is too long": lambda: c.all_gather(x, x),
        "all_gather between two dtypes": lambda: c.all_gather(x, x[:2].bfloat16()),
        "reduce_scatter into a shard that is too long": lambda: c.reduce_scatter(x.clone(), x),
        "reduce_scatter of max": lambda: c.reduce_scatter(x[:2], x, op="max"),
        "all_to_all of splits that add up to less": lambda: c.all_to_all(x, x.clone(), input_splits=[1] * r.world),
        "broadcast into a tensor with gaps": lambda: c.broadcast(gaps, 0),
        "recv into a tensor with gaps": lambda: c.recv(gaps, r.rank ^ 1),
    }
    for name, call in bad.items():
        with during(name):
            require(_raises_value_error(call), "nothing was refused: raise a ValueError before anything is sent")
    c.barrier()
    expect(x, torch.ones(2 * r.world, 4), "leave tensors alone that are refused")


def _raises_value_error(call: Callable[[], object]) -> bool:
    try:
        call()
    except ValueError:
        return True
    return False


COLLECTIVE_CHECKS: dict[str, Callable[[Ranks], None]] = {
    "all_reduce": check_all_reduce,
    "all_gather": check_all_gather,
    "reduce_scatter": check_reduce_scatter,
    "all_to_all": check_all_to_all,
    "uneven_all_to_all": check_uneven_all_to_all,
    "broadcast": check_broadcast,
    "send_recv": check_send_recv,
    "empty": check_empty,
    "large": check_large,
    "asynchronous": check_asynchronous,
    "at_once": check_at_once,
    "groups": check_groups,
    "barrier_and_agree": check_barrier_and_agree,
    "refusals": check_refusals,
}
"""By the name that ``--check`` takes."""


def check_alone(collectives: Collectives, device: torch.device) -> None:
    """In a program without process groups one process is all: every call does what a group of one would do."""
    if torch.distributed.is_initialized():
        raise NotHereError("this program has process groups")
    given = numbers(0, 4)
    x = given.to(torch.float32).to(device)
    outputs = [torch.zeros(4, COLUMNS, device=device) for _ in range(3)]
    total = x.clone()
    with during("without process groups"):
        collectives.all_gather(outputs[0], x, asynchronous=True).wait()
        collectives.reduce_scatter(outputs[1], x, op="avg")
        collectives.all_to_all(outputs[2], x)
        collectives.all_reduce(total)
        collectives.broadcast(total, 0)
        collectives.barrier()
        for output in (*outputs, total):
            expect(output, given, "copy what goes in, as a group of one would")
        require(collectives.agree("me") == ["me"], "agree() must return its own text alone")
