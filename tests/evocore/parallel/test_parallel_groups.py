"""Groups of this process: values that really went to other processes, and a group of one that sends nothing."""

import pytest
import torch
import torch.distributed as dist

from evocore.backends.cpu.device import CPUBackend
from evocore.ops.collectives import FINISHED
from evocore.parallel.groups import Groups
from evocore.parallel.topology import Sizes, Topology

FOUR = Sizes(world=4, tensor=2, zero=2)
RING = Sizes(world=4, mode="isp", tensor=4, context=4, window=2)


class CountingBackend(CPUBackend):
    def __init__(self):
        self.made = []

    def new_group(self, ranks):
        self.made.append(tuple(ranks))
        return super().new_group(ranks)


def groups_of(sizes, backend=None):
    return Groups(Topology(sizes), dist.get_rank() if dist.is_initialized() else 0, backend or CPUBackend())


# --- on four processes --------------------------------------------------------------------------------------------


def every_call(name, asynchronous):
    """Each result with the rank in it, so that nobody's data can pass for another's."""
    rank, group = dist.get_rank(), groups_of(FOUR).get(name)
    mine = torch.tensor([1.0 * rank, 10.0 * rank])
    total, largest = mine.clone(), mine.clone()
    gathered, part, swapped, said = torch.empty(4), torch.empty(1), torch.empty(2), mine.clone()
    rows_to, rows_from = ([1, 2], [1, 1]) if group.rank == 0 else ([1, 1], [2, 1])
    uneven, rows = torch.empty(sum(rows_from)), torch.full((sum(rows_to),), float(rank))
    handles = [
        group.all_reduce(total, asynchronous=asynchronous),
        group.all_reduce(largest, op="max", asynchronous=asynchronous),
        group.all_gather(gathered, mine, asynchronous=asynchronous),
        group.reduce_scatter(part, mine, op="avg", asynchronous=asynchronous),
        group.all_to_all(swapped, mine, asynchronous=asynchronous),
        group.all_to_all(uneven, rows, input_splits=rows_to, output_splits=rows_from, asynchronous=asynchronous),
        group.broadcast(said, 1, asynchronous=asynchronous),
    ]
    group.barrier()
    for handle in handles:
        handle.wait()
    received = torch.empty(2)
    ahead, behind = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    sent = group.send(mine, ahead)
    group.recv(received, behind).wait()
    sent.wait()
    results = (total, largest, gathered, part, swapped, uneven, said, received)
    return group.ranks, group.rank, [tensor.tolist() for tensor in results]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("name", ["tensor", "data"])
def test_calls_reach_the_members_of_the_group_and_nobody_else(ranks, name, asynchronous):
    for rank, (members, place, results) in enumerate(ranks(4, every_call, name, asynchronous)):
        a, b = members
        assert members == ((rank // 2 * 2, rank // 2 * 2 + 1) if name == "tensor" else (rank % 2, rank % 2 + 2))
        assert members[place] == rank
        other = members[1 - place]
        assert results == [
            [a + b, 10 * (a + b)],
            [b, 10 * b],
            [a, 10 * a, b, 10 * b],
            [(a + b) / 2 * (1, 10)[place]],
            [a, b] if place == 0 else [10 * a, 10 * b],
            [a, b] if place == 0 else [a, a, b],
            [b, 10 * b],
            [other, 10 * other],
        ]


def sharing():
    backend = CountingBackend()
    groups = groups_of(FOUR, backend)
    names = ("tensor", "sequence", "head", "data", "zero", "weight", "world", "stage", "tensor")
    got = {name: groups.get(name) for name in names}
    assert got["tensor"] is groups.get("tensor")
    assert got["tensor"].process_group is got["sequence"].process_group is got["head"].process_group is not None
    assert got["data"].process_group is got["zero"].process_group is not got["tensor"].process_group
    assert got["world"].process_group is got["stage"].process_group is None
    assert got["weight"].size == 1 and got["weight"].process_group is None
    total = torch.tensor([1.0 + dist.get_rank()])
    got["stage"].all_reduce(total)
    alone = torch.tensor([7.0])
    got["weight"].all_reduce(alone)
    return backend.made, total.item(), alone.item()


def test_process_groups_are_made_once_by_all_processes_in_one_order(ranks):
    for made, total, alone in ranks(4, sharing):
        assert made == [(0, 1), (2, 3), (0, 2), (1, 3)]
        assert (total, alone) == (10.0, 7.0)


def rings():
    backend = CountingBackend()
    groups = groups_of(RING, backend)
    keys, gradients = groups.get("intra_window"), groups.get("dkv_intra_window")
    assert keys.ranks == gradients.ranks and keys.process_group is not gradients.process_group
    return backend.made


def test_two_rings_over_the_same_ranks_do_not_share_a_process_group(ranks):
    assert ranks(4, rings) == [[(0, 1), (2, 3)] * 2] * 4


def mismatched():
    with pytest.raises(ValueError, match="rank 0 of 8 in the topology is rank . of 2 in torch.distributed"):
        Groups(Topology(Sizes(world=8)), 0, CPUBackend())
    with pytest.raises(ValueError, match="rank . of 2 in the topology"):
        Groups(Topology(Sizes(world=2)), 1 - dist.get_rank(), CPUBackend())


def test_a_topology_of_other_ranks_is_refused(ranks):
    ranks(2, mismatched)


# --- on one process -----------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    assert not dist.is_initialized()
    return groups_of(Sizes(world=1)).get("data")


def test_a_group_of_one_is_the_identity(alone):
    assert (alone.ranks, alone.rank, alone.size, alone.process_group) == ((0,), 0, 1, None)
    tensor = torch.arange(6.0).view(2, 3)
    for output, call in [
        (torch.empty(2, 3), alone.all_gather),
        (torch.empty(6), alone.reduce_scatter),
        (torch.empty(2, 3), lambda output, rows: alone.all_to_all(output, rows, output_splits=[2], input_splits=[2])),
    ]:
        assert call(output, tensor) is FINISHED
        assert output.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    for call in (alone.all_reduce, alone.broadcast):
        assert call(tensor, asynchronous=True) is FINISHED
    alone.barrier()
    assert tensor.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_group_of_one_copies_what_has_strides_and_leaves_its_own_memory_alone(alone):
    output = torch.empty(6)
    alone.all_gather(output, torch.arange(6.0).view(2, 3).t())
    assert output.tolist() == [0, 3, 1, 4, 2, 5]

    tensor = torch.arange(6.0, requires_grad=True)
    before = tensor._version
    alone.all_gather(tensor.detach(), tensor.view(2, 3))
    assert tensor._version == before


@pytest.mark.parametrize("name", ["all_gather", "reduce_scatter", "all_to_all"])
def test_a_group_of_one_refuses_what_a_larger_one_would(alone, name):
    call = getattr(alone, name)
    for output, tensor in [(torch.empty(4), torch.ones(1)), (torch.empty(4), torch.ones(4, dtype=torch.float64))]:
        with pytest.raises(ValueError, match=f"{name} on one rank needs two tensors of one size and dtype"):
            call(output, tensor)
    with pytest.raises(ValueError, match="with gaps"):
        call(torch.empty(4, 2)[:, 0], torch.ones(4))


def test_nobody_sends_to_itself(alone):
    for call in (alone.send, alone.recv):
        with pytest.raises(ValueError, match="exchanges a message with itself"):
            call(torch.ones(1), 0)
    with pytest.raises(IndexError):
        alone.broadcast(torch.ones(1), 1)


def test_groups_of_several_ranks_need_several_processes():
    groups = groups_of(FOUR)
    assert groups.get("weight").size == 1
    for name in ("tensor", "world"):
        with pytest.raises(ValueError, match="[Pp]rocess group has not been initialized"):
            groups.get(name)


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="tensors"):
        groups_of(Sizes(world=1)).get("tensors")
