"""Collectives on several gloo processes, through the backend's own door: values, dtypes, handles, refusals."""

import warnings

import pytest
import torch
import torch.distributed as dist

from evocore.backends.cpu.device import CPUBackend
from evocore.ops.collectives import Collectives

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64]
WORLDS = [2, 4]
KINDS = [Collectives, CPUBackend().collectives]


def mine(rank, rows, dtype):
    """Small whole numbers, so that sums are exact in every dtype: row i of rank r is 10 r + i."""
    return (torch.arange(rows, dtype=torch.float64) + 10 * rank).to(dtype)[:, None].expand(rows, 3)


def everything(make, dtype, asynchronous):
    collectives, rank, world = make(), dist.get_rank(), dist.get_world_size()
    got = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        for op in ("sum", "max", "min"):
            got[op] = mine(rank, 3, dtype).contiguous()
            collectives.all_reduce(got[op], op=op, asynchronous=asynchronous).wait()

        got["gathered"] = torch.empty(2 * world, 3, dtype=dtype)
        collectives.all_gather(got["gathered"], mine(rank, 2, dtype), asynchronous=asynchronous).wait()

        got["scattered"] = torch.empty(2, 3, dtype=dtype)
        handle = collectives.reduce_scatter(got["scattered"], mine(rank, 2 * world, dtype), asynchronous=asynchronous)
        handle.wait()
        handle.wait()

        got["exchanged"] = torch.empty(2 * world, 3, dtype=dtype)
        collectives.all_to_all(got["exchanged"], mine(rank, 2 * world, dtype), asynchronous=asynchronous).wait()

        got["broadcast"] = mine(rank, 2, dtype).contiguous()
        collectives.broadcast(got["broadcast"], world - 1, asynchronous=asynchronous).wait()

        got["received"] = torch.empty(2, 3, dtype=dtype)
        sent = collectives.send(mine(rank, 2, dtype), (rank + 1) % world)
        collectives.recv(got["received"], (rank - 1) % world).wait()
        sent.wait()

        collectives.barrier()
        got["texts"] = collectives.agree(f"rank {rank}")
    return got


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("make", KINDS)
def test_values(ranks, make, world, dtype, asynchronous):
    inputs = [mine(rank, 2 * world, dtype) for rank in range(world)]
    for rank, got in enumerate(ranks(world, everything, make, dtype, asynchronous)):
        three = torch.stack([mine(other, 3, dtype) for other in range(world)])
        part = slice(2 * rank, 2 * rank + 2)
        assert torch.equal(got["sum"], three.sum(0).to(dtype))
        assert torch.equal(got["max"], three.amax(0))
        assert torch.equal(got["min"], three.amin(0))
        assert torch.equal(got["gathered"], torch.cat([mine(other, 2, dtype) for other in range(world)]))
        assert torch.equal(got["scattered"], sum(whole[part] for whole in inputs))
        assert torch.equal(got["exchanged"], torch.cat([whole[part] for whole in inputs]))
        assert torch.equal(got["broadcast"], mine(world - 1, 2, dtype))
        assert torch.equal(got["received"], mine((rank - 1) % world, 2, dtype))
        assert got["texts"] == [f"rank {other}" for other in range(world)]


def averages(make):
    collectives, rank, world = make(), dist.get_rank(), dist.get_world_size()
    reduced = torch.tensor([float(rank), 1.0])
    collectives.all_reduce(reduced, op="avg")
    shard = torch.empty(1)
    collectives.reduce_scatter(shard, torch.full((world,), float(rank)), op="avg")
    return reduced, shard


@pytest.mark.parametrize("make", KINDS)
def test_averages(ranks, make):
    for reduced, shard in ranks(4, averages, make):
        assert reduced.tolist() == [1.5, 1.0] and shard.tolist() == [1.5]


def uneven(make, counts):
    """``counts[s][r]`` rows go from rank s to rank r."""
    rank, world = dist.get_rank(), dist.get_world_size()
    sending, receiving = counts[rank], [counts[source][rank] for source in range(world)]
    rows = torch.tensor([100 * rank + r for r in range(world) for _ in range(sending[r])], dtype=torch.float32)
    output = torch.empty(sum(receiving))
    handle = make().all_to_all(output, rows, output_splits=receiving, input_splits=sending, asynchronous=True)
    handle.wait()
    return output


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("counts", [[[0, 3], [1, 2]], [[0, 0], [5, 0]], [[0, 0], [0, 0]]], ids=str)
def test_uneven_all_to_all(ranks, make, counts):
    for rank, output in enumerate(ranks(2, uneven, make, counts)):
        assert output.tolist() == [100.0 * s + rank for s in range(2) for _ in range(counts[s][rank])]


def sums_of_awkward_numbers(dtype):
    rank, world = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)
    whole = (torch.randn(world * 1001, generator=generator) * 10.0 ** (rank * 3)).to(dtype)
    shards = []
    for _ in range(3):
        shard = torch.empty(1001, dtype=dtype)
        CPUBackend().collectives().reduce_scatter(shard, whole, asynchronous=True).wait()
        shards.append(shard)
    return whole, shards


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_cpu_reduce_scatter_adds_in_rank_order_and_rounds_once(ranks, dtype):
    results = ranks(4, sums_of_awkward_numbers, dtype)
    for rank, (_, shards) in enumerate(results):
        parts = [whole[1001 * rank : 1001 * (rank + 1)].float() for whole, _ in results]
        expected = (((parts[0] + parts[1]) + parts[2]) + parts[3]).to(dtype)
        assert all(torch.equal(shard, expected) for shard in shards)


def awkward_layouts(make):
    collectives, rank, world = make(), dist.get_rank(), dist.get_world_size()
    whole = torch.arange(4.0 * world).view(2 * world, 2).t().contiguous().t() + rank  # column-major
    before, shard = whole.clone(), torch.empty(2, 2)
    collectives.reduce_scatter(shard, whole)

    inside = torch.ones(world, 2) * (rank + 1)
    collectives.reduce_scatter(inside[rank : rank + 1], inside)  # into a part of its own input

    empty = torch.empty(0, 5)
    collectives.all_reduce(empty)
    collectives.all_gather(empty, empty, asynchronous=True).wait()
    collectives.reduce_scatter(empty, empty, asynchronous=True).wait()
    collectives.broadcast(empty, 0)
    collectives.send(empty, 1 - rank).wait()
    collectives.recv(empty, 1 - rank).wait()
    return torch.equal(before, whole), shard, inside


@pytest.mark.parametrize("make", KINDS)
def test_gaps_in_inputs_parts_of_inputs_and_nothing_at_all(ranks, make):
    for rank, (untouched, shard, inside) in enumerate(ranks(2, awkward_layouts, make)):
        assert untouched
        assert torch.equal(shard, 2 * torch.arange(8.0).view(4, 2)[2 * rank : 2 * rank + 2] + 1)
        assert inside.tolist() == [[3.0, 3.0] if row == rank else [rank + 1.0] * 2 for row in range(2)]


def in_a_group_of_odd_ranks():
    group = dist.new_group([1, 3])
    if dist.get_rank() not in (1, 3):
        return None
    shard, value = torch.empty(1), torch.tensor([float(dist.get_rank())])
    CPUBackend().collectives().reduce_scatter(shard, torch.tensor([1.0, 2.0]) * dist.get_rank(), group)
    Collectives().broadcast(value, 3, group)
    return shard.item(), value.item()


def test_a_subgroup_counts_its_own_ranks_and_names_global_sources(ranks):
    assert ranks(4, in_a_group_of_odd_ranks) == [None, (4.0, 3.0), None, (8.0, 3.0)]


GAPS = torch.empty(4, 4)[:, ::2]


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "call, message",
    [
        (lambda c: c.all_reduce(GAPS), "must be contiguous"),
        (lambda c: c.recv(GAPS, 0), "must be contiguous"),
        (lambda c: c.all_reduce(torch.ones(2), op="product"), "no op 'product'"),
        (lambda c: c.all_reduce(torch.ones(2, dtype=torch.int64), op="avg"), "no avg of torch.int64"),
        (lambda c: c.reduce_scatter(torch.empty(2), torch.ones(2), op="max"), "no op 'max'"),
        (lambda c: c.reduce_scatter(torch.empty(2), torch.ones(3)), "1 times its part"),
        (lambda c: c.all_gather(torch.empty(2), torch.ones(2).double()), "of one dtype"),
        (lambda c: c.all_to_all(torch.empty(3), torch.ones(3), input_splits=[2]), "add up to 3"),
    ],
)
def test_refused_before_anything_is_sent(make, call, message):
    with pytest.raises(ValueError, match=message):
        call(make())


@pytest.mark.parametrize("make", KINDS)
def test_one_process_without_process_groups_is_a_group_of_one(make):
    collectives, x = make(), torch.arange(6.0).view(3, 2).requires_grad_()
    gathered, scattered, exchanged = (torch.empty(3, 2) for _ in range(3))

    collectives.all_gather(gathered, x, asynchronous=True).wait()
    collectives.reduce_scatter(scattered, x, op="avg")
    collectives.all_to_all(exchanged, x)
    total = x.detach().clone()
    collectives.all_reduce(total)
    collectives.broadcast(total, 0)
    collectives.barrier()

    for output in (gathered, scattered, exchanged, total):
        assert torch.equal(output, x) and not output.requires_grad
    assert collectives.agree("me") == ["me"]
