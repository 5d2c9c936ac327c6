"""Tables of actions: in PyTorch's order where it has the schedule, complete, free of deadlock, bounded in memory."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining import schedules as oracle

from evocore.parallel.pipeline.checking import ScheduleError, bubble, check, peak_live, timeline
from evocore.parallel.pipeline.messages import compile_tables
from evocore.parallel.pipeline.schedules import Action, Schedule
from evocore.parallel.pipeline.split import split_layers

KINDS = {"FORWARD": "F", "FULL_BACKWARD": "B", "BACKWARD_INPUT": "I", "BACKWARD_WEIGHT": "W"}
CHUNKS = {"1F1B": (1,), "interleaved": (1, 2, 3), "ZBH1": (1,), "ZBV": (2,)}


@st.composite
def any_schedule(draw):
    name = draw(st.sampled_from(sorted(CHUNKS)))
    return Schedule(name, draw(st.integers(1, 6)), draw(st.sampled_from(CHUNKS[name])))


def theirs(actions):
    return [(KINDS[one.computation_type.name], one.stage_index, one.microbatch_index) for one in actions if one]


@pytest.mark.parametrize("stages", [2, 3, 4])
def test_the_v_is_pytorchs(stages):
    for count in (1, 2, 5, 8):
        v = oracle.ScheduleZBVZeroBubble.__new__(oracle.ScheduleZBVZeroBubble)
        v.pp_group_size, v.num_stages, v._n_microbatches = stages, 2 * stages, count
        for stage, table in enumerate(Schedule("ZBV", stages, 2).tables(count)):
            assert table == theirs(v._calculate_single_rank_operations(stage))


@pytest.mark.parametrize(
    ("stages", "chunks", "count"), [(2, 2, 4), (2, 2, 6), (3, 2, 8), (4, 2, 6), (4, 3, 8), (2, 4, 2)]
)
def test_interleaving_is_pytorchs(stages, chunks, count):
    interleaved = oracle.ScheduleInterleaved1F1B.__new__(oracle.ScheduleInterleaved1F1B)
    interleaved.pp_group_size, interleaved.n_local_stages, interleaved._n_microbatches = stages, chunks, count
    interleaved.rank, interleaved._num_stages = 0, stages * chunks
    interleaved.number_of_rounds = max(1, count // stages)
    interleaved.microbatches_per_round = count // interleaved.number_of_rounds
    for stage, table in enumerate(Schedule("interleaved", stages, chunks).tables(count)):
        assert table == theirs(interleaved._calculate_single_rank_operations(stage))


def test_1f1b_and_zbh1_are_those_of_their_papers():
    def told(name):
        return [" ".join(f"{kind}{micro}" for kind, _, micro in table) for table in Schedule(name, 3).tables(4)]

    assert told("1F1B") == ["F0 F1 F2 B0 F3 B1 B2 B3", "F0 F1 B0 F2 B1 F3 B2 B3", "F0 B0 F1 B1 F2 B2 F3 B3"]
    assert told("ZBH1") == [
        "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3",
        "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3",
        "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3",
    ]


@settings(max_examples=60)
@given(any_schedule(), st.integers(1, 20))
def test_every_table_is_complete_and_cannot_lock(schedule, count):
    check(schedule, schedule.tables(count), count)
    check(schedule, schedule.forward_tables(count), count, backward=False)


@settings(max_examples=60)
@given(any_schedule(), st.integers(1, 20))
def test_live_activations_are_bounded_whatever_the_number_of_micro_batches(schedule, count):
    peaks = [peak_live(table) for table in schedule.tables(count)]

    assert all(peak <= schedule.live_bound(stage) for stage, peak in enumerate(peaks))
    if count >= schedule.stages and schedule.name in ("1F1B", "ZBH1"):
        assert peaks == [schedule.live_bound(stage) for stage in range(schedule.stages)]


@settings(max_examples=60)
@given(any_schedule(), st.integers(1, 12), st.data())
def test_the_check_notices_what_is_missing_twice_or_out_of_order(schedule, count, data):
    tables = schedule.tables(count)
    table = tables[data.draw(st.integers(0, schedule.stages - 1))]
    place = data.draw(st.integers(0, len(table) - 1))
    if data.draw(st.booleans()):
        del table[place]
    else:
        table.insert(data.draw(st.integers(place, len(table))), table[place])

    with pytest.raises(ScheduleError):
        check(schedule, tables, count)


def test_the_check_notices_stages_that_wait_in_a_circle():
    schedule = Schedule("1F1B", 2)
    tables = schedule.tables(2)
    tables[0] = [Action("F", 0, 0), Action("B", 0, 0), Action("F", 0, 1), Action("B", 0, 1)]
    tables[1] = [Action("F", 1, 0), Action("F", 1, 1), Action("B", 1, 0), Action("B", 1, 1)]

    with pytest.raises(ScheduleError, match=r"wait for ever: the next actions are \{0: 'B0.0', 1: 'F1.1'\}"):
        check(schedule, tables, 2)


@pytest.mark.parametrize(
    ("name", "chunks", "expected"),
    # P - 1 of M + P - 1 in 1F1B; where F, I and W take as long, a C-th of that interleaved, a third without bubbles
    # for weights, and a sixth where two chunks are a V.
    [("1F1B", 1, 3 / 11), ("interleaved", 2, 3 / 19), ("ZBH1", 1, 1 / 9), ("ZBV", 2, 1 / 17)],
)
def test_bubbles_are_those_of_the_papers(name, chunks, expected):
    schedule = Schedule(name, 4, chunks)

    assert bubble(timeline(schedule, schedule.tables(8)), 4) == pytest.approx(expected)


def test_the_timeline_says_when_an_action_runs():
    schedule = Schedule("1F1B", 2)
    timed = timeline(schedule, schedule.tables(1), {"F": 2.0, "B": 3.0}, message=0.5)

    assert [(one.stage, str(one.action), one.start, one.end) for one in timed] == [
        (0, "F0.0", 0.0, 2.0),
        (1, "F1.0", 2.5, 4.5),
        (1, "B1.0", 4.5, 7.5),
        (0, "B0.0", 8.0, 11.0),
    ]


@settings(max_examples=60)
@given(any_schedule(), st.integers(1, 16))
def test_what_is_sent_is_received_once_and_known_to_have_arrived(schedule, count):
    programs = compile_tables(schedule, schedule.tables(count))
    sent = {(stage, step.sends) for stage, one in enumerate(programs) for step in one.steps if step.sends}
    for stage, program in enumerate(programs):
        received = [(source, (message, stage)) for source, many in program.incoming.items() for message in many]
        needed = [step.needs for step in program.steps if step.needs]
        assert sorted(needed) == sorted(message for _, (message, _) in received)
        assert sent.issuperset(received)
        sent.difference_update(received)
        held, most = set(), 0
        for step in program.steps:
            assert held.issuperset(step.arrived)
            held.difference_update(step.arrived)
            if step.sends:
                held.add(step.sends[0])
            most = max(most, len(held))
        assert most <= 6 * schedule.total_chunks  # and not the number of micro-batches
    assert not sent


def test_schedules_have_the_chunks_that_they_need():
    for name, chunks in (("1F1B", 2), ("ZBH1", 2), ("ZBV", 1), ("GPipe", 1)):
        with pytest.raises(ValueError, match=name):
            Schedule(name, 2, chunks)
    assert [Schedule("interleaved", 2, 2).chunks_of(stage) for stage in (0, 1)] == [(0, 2), (1, 3)]
    assert [Schedule("ZBV", 2, 2).chunks_of(stage) for stage in (0, 1)] == [(0, 3), (1, 2)]


def test_layers_are_dealt_out_evenly_with_the_rest_in_the_middle():
    def lengths(*args):
        return [len(chunk) for chunk in split_layers(*args)]

    assert lengths(8, 4) == [2, 2, 2, 2]
    assert lengths(9, 4) == [2, 3, 2, 2]
    assert lengths(11, 4) == [3, 3, 3, 2]
    assert lengths(3, 2) == [2, 1]
    assert split_layers(5, 2, [1, 4]) == [range(0, 1), range(1, 5)]
    for layers, chunks, counts in ((3, 4, None), (4, 2, [4]), (4, 2, [3, 2]), (4, 2, [4, 0])):
        with pytest.raises(ValueError, match="chunks"):
            split_layers(layers, chunks, counts)
