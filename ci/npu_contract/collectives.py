"""Every collective of the real ProcessGroupHCCL between two processes, against what it must give.

Beneath it is the stand-in's HCCL, over shared memory.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch_npu
from checking import refuses
from torch import Tensor

RANKS = 2
LARGE = 5_000_003
"""Elements of a message that needs several pieces, and not a round number of them."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
REDUCED = (*FLOATS, torch.int8, torch.int16, torch.int32, torch.int64)
COPIED = (*REDUCED, torch.uint8, torch.bool, torch.float64)


def start(rank: int, meeting: str) -> None:
    os.environ.update(LOCAL_RANK=str(rank))
    torch.npu.set_device(rank)
    dist.init_process_group("cpu:gloo,npu:hccl", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)


def equal(found: Tensor, expected: Sequence[float] | float) -> None:
    wanted = torch.as_tensor(expected).to(found.dtype).expand(found.shape)
    assert torch.equal(found.cpu(), wanted), f"{found.cpu()[:8]} instead of {wanted[:8]}"


def check_reductions(rank: int, device: torch.device) -> None:
    for dtype in REDUCED:
        for op, expected in ((dist.ReduceOp.SUM, [3, 5]), (dist.ReduceOp.MAX, [2, 3]), (dist.ReduceOp.MIN, [1, 2])):
            x = torch.tensor([1 + rank, 2 + rank], dtype=dtype, device=device)
            dist.all_reduce(x, op)
            equal(x, expected)
        x = torch.full((3,), 1 + rank, dtype=dtype, device=device)
        dist.reduce(x, 1)
        equal(x, 3 if rank == 1 else 1)
        shard = torch.empty(2, dtype=dtype, device=device)
        dist.reduce_scatter_tensor(shard, torch.arange(4, device=device).to(dtype))
        equal(shard, [[0, 2], [4, 6]][rank])
    x = torch.full((LARGE,), 1.5, device=device)
    dist.all_reduce(x, async_op=True).wait()
    equal(x, 3.0)
    x = torch.full((4,), float(rank), device=device)
    dist.all_reduce(x, dist.ReduceOp.AVG)
    equal(x, 0.5)
    refuses("Unsupported data type", lambda: dist.all_reduce(torch.ones(2, dtype=torch.float64, device=device)))
    refuses(
        "product", lambda: dist.all_reduce(torch.ones(2, dtype=torch.bfloat16, device=device), dist.ReduceOp.PRODUCT)
    )


def check_copies(rank: int, device: torch.device) -> None:
    for dtype in COPIED:
        x = torch.full((3,), rank, dtype=dtype, device=device)
        everyone = torch.empty(6, dtype=dtype, device=device)
        dist.all_gather_into_tensor(everyone, x)
        equal(everyone, [0, 0, 0, 1, 1, 1])
        dist.broadcast(x, 1)
        equal(x, 1)
        exchanged = torch.empty(4, dtype=dtype, device=device)
        dist.all_to_all_single(exchanged, torch.tensor([0, 1, 1, 0], device=device).to(dtype))
        equal(exchanged, [[0, 1, 0, 1], [1, 0, 1, 0]][rank])
    uneven = [torch.empty(2 + i, device=device) for i in range(RANKS)]
    dist.all_gather(uneven, torch.full((2 + rank,), float(rank), device=device))
    equal(uneven[0], 0.0)
    equal(uneven[1], 1.0)
    counts = [[1, 3], [2, 0]]
    given = torch.arange(sum(counts[rank]), device=device, dtype=torch.float32) + 10 * rank
    taken = [row[rank] for row in counts]
    got = torch.empty(sum(taken), device=device)
    dist.all_to_all_single(got, given, taken, counts[rank])
    equal(got, [[0, 10, 11], [1, 2, 3]][rank])
    piece = torch.empty(2, device=device)
    dist.scatter(piece, [torch.full((2,), float(i), device=device) for i in range(RANKS)] if rank == 0 else None, 0)
    equal(piece, float(rank))


def check_messages(rank: int, device: torch.device) -> None:
    """Both directions at once, so large that neither fits anywhere before the other side takes it."""
    mine, theirs = torch.full((8 * LARGE,), float(rank), device=device), torch.empty(8 * LARGE, device=device)
    requests = dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, mine, 1 - rank), dist.P2POp(dist.irecv, theirs, 1 - rank)]
    )
    for request in requests:
        request.wait()
    equal(theirs, 1.0 - rank)
    if rank == 0:
        for number in range(4):
            dist.send(torch.full((3,), float(number), device=device), 1)
    else:
        got = torch.empty(3, device=device)
        for number in range(4):
            dist.recv(got, 0)
            equal(got, float(number))
    objects: list[object] = [None] * RANKS
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": 0}, {"rank": 1}]
    dist.barrier()


def check_groups(rank: int, device: torch.device) -> None:
    options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 64}
    for _ in range(3):
        group = dist.new_group([0, 1], backend="hccl", pg_options=options)
        x = torch.ones(2, device=device)
        dist.all_reduce(x, group=group)
        equal(x, 2.0)
        dist.destroy_process_group(group)
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4, device=device))
    model(torch.full((2, 4), 1.0 + rank, device=device)).sum().backward()
    equal(model.module.weight.grad, 3.0)


def work(rank: int, meeting: str) -> None:
    start(rank, meeting)
    device = torch.device("npu", rank)
    for function in (check_reductions, check_copies, check_messages, check_groups):
        function(rank, device)
        if rank == 0:
            print(f"  {function.__name__.removeprefix('check_')}: passed", flush=True)
    dist.destroy_process_group()


def work_at_odds(rank: int, meeting: str) -> None:
    """Ranks that call different things are told, where hardware would wait for ever."""
    start(rank, meeting)
    device = torch.device("npu", rank)
    dist.barrier()
    refuses("but rank", lambda: dist.all_reduce(torch.ones(2 + rank, device=device)))
    os._exit(0)


def work_until_one_dies(rank: int, meeting: str) -> None:
    start(rank, meeting)
    device = torch.device("npu", rank)
    dist.all_reduce(torch.ones(2, device=device))
    if rank == 1:
        os._exit(0)
    begin = time.monotonic()
    refuses("is gone", lambda: dist.all_reduce(torch.ones(2, device=device)))
    assert time.monotonic() - begin < 20
    os._exit(0)


def main() -> int:
    left = {path.name for path in Path("/dev/shm").iterdir()}
    for function in (work, work_at_odds, work_until_one_dies):
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(function, (f"{folder}/meeting",), RANKS)
        print(f"  {function.__name__.replace('_', ' ')}: passed", flush=True)
    new = {path.name for path in Path("/dev/shm").iterdir()} - left
    assert not any("hccl" in name for name in new), f"shared memory is left behind: {new}"
    return 0


if __name__ == "__main__":
    sys.exit(main())
