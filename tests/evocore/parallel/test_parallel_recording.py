"""What a recording says of real exchanges, and that they still happen."""

import pytest
import torch
import torch.distributed as dist

from evocore.backends.cpu.collectives import CPUCollectives
from evocore.backends.cpu.device import CPUBackend
from evocore.parallel.groups import Groups
from evocore.parallel.recording import Event, RecordingCollectives
from evocore.parallel.topology import Sizes, Topology


def exchange():
    rank, recording = dist.get_rank(), RecordingCollectives(CPUCollectives())
    groups = Groups(Topology(Sizes(world=4, tensor=2)), rank, CPUBackend(), recording)
    tensor, world, single = groups.get("tensor"), groups.get("world"), groups.get("weight")
    mine = torch.full((2, 3), float(rank), dtype=torch.float64)

    gathered = torch.empty(4, 3, dtype=torch.float64)
    going = tensor.all_gather(gathered, mine, asynchronous=True)
    recording.mark("compute")
    going.wait()
    going.wait()
    part = torch.empty(1, 3, dtype=torch.float64)
    tensor.reduce_scatter(part, mine)
    world.all_reduce(mine[:1])
    tensor.all_to_all(torch.empty(2, 3), torch.empty(2, 3), input_splits=[1, 1], output_splits=[1, 1])
    single.all_reduce(mine)
    world.broadcast(mine, 3)
    assert gathered[:, 0].tolist() == [tensor.ranks[0]] * 2 + [tensor.ranks[1]] * 2
    assert part.tolist() == [[float(sum(tensor.ranks))] * 3]
    assert mine.tolist() == [[6.0] * 3, [3.0] * 3]
    world.barrier()
    assert recording.agree(str(rank)) == ["0", "1", "2", "3"]
    return recording.events, recording.totals()


def test_every_exchange_is_written_down_and_still_happens(ranks):
    everyone = (0, 1, 2, 3)
    for rank, (events, totals) in enumerate(ranks(4, exchange)):
        pair = (0, 1) if rank < 2 else (2, 3)
        assert events[:3] == [
            Event("all_gather", pair, 4 * 3 * 8, "start", 1),
            Event("compute", (), 0, "mark", 0),
            Event("all_gather", pair, 4 * 3 * 8, "wait", 1),
        ]
        rest = [
            Event("reduce_scatter", pair, 2 * 3 * 8, "start", 2),
            Event("all_reduce", everyone, 3 * 8, "start", 3),
            Event("all_to_all", pair, 2 * 3 * 4, "start", 4),
            Event("broadcast", everyone, 2 * 3 * 8, "start", 5),
            Event("barrier", everyone, 0, "start", 6),
            Event("agree", everyone, 1, "start", 7),
        ]
        assert events[3::2] == rest
        assert [(event.op, event.kind, event.number) for event in events[4::2]] == [
            (event.op, "wait", event.number) for event in rest
        ]
        assert totals == {(event.op, event.ranks): (1, event.bytes) for event in [events[0], *rest]}


def pass_along():
    rank, recording = dist.get_rank(), RecordingCollectives(CPUCollectives())
    received = torch.empty(5)
    sent = recording.send(torch.full((5,), float(rank)), 1 - rank)
    recording.recv(received, 1 - rank).wait()
    sent.wait()
    return received.tolist(), recording.events


def test_messages_name_sender_and_receiver(ranks):
    for rank, (received, events) in enumerate(ranks(2, pass_along)):
        assert received == [1.0 - rank] * 5
        there, back = (rank, 1 - rank), (1 - rank, rank)
        assert events == [
            Event("send", there, 20, "start", 1),
            Event("recv", back, 20, "start", 2),
            Event("recv", back, 20, "wait", 2),
            Event("send", there, 20, "wait", 1),
        ]


def test_totals_add_up_and_clearing_starts_again():
    recording = RecordingCollectives(CPUCollectives())
    recording.all_reduce(torch.ones(2))
    recording.all_reduce(torch.ones(3), op="max")
    recording.mark("step")
    going = recording.all_gather(torch.empty(3), torch.ones(3), asynchronous=True)
    assert recording.totals() == {("all_reduce", (0,)): (2, 20), ("all_gather", (0,)): (1, 12)}

    recording.clear()
    assert recording.totals() == {}
    going.wait()
    recording.barrier()
    assert [(event.op, event.kind, event.number) for event in recording.events] == [
        ("all_gather", "wait", 3),
        ("barrier", "start", 4),
        ("barrier", "wait", 4),
    ]


def test_a_refused_call_leaves_nothing_behind():
    recording = RecordingCollectives(CPUCollectives())
    with pytest.raises(ValueError, match="has no op 'mean'"):
        recording.all_reduce(torch.ones(2), op="mean")
    assert recording.events == []
    assert recording.dtypes() == CPUCollectives().dtypes()
