"""Every byte that ranks exchange in a step is in the formula, and what should run beside compute is started there."""

import pytest
import torch
from parallel_counted_runs import CASES, END_OF_STEP, SMALL_BUCKETS, STEPS, Case, on_paper, seen, tensor

from evocore.errors import UserError
from evocore.training.metrics import TokenMeter


@pytest.fixture
def steps_of(ranks, tmp_path):
    """Of a case and a rank the events of each step."""
    return lambda name, rank=0: seen(name, ranks, tmp_path)[rank].steps


def counted(case, rank):
    """The formula's calls and bytes by op and ranks."""
    paper, layout = on_paper(case, rank)
    found = {}
    for exchange in paper.traffic():
        key = exchange.op, layout.topology.group_of(exchange.group, rank)
        calls, size = found.get(key, (0, 0))
        found[key] = calls + exchange.calls, size + exchange.bytes
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_ranks_exchange_in_a_step_is_what_the_formula_says(name, ranks, tmp_path):
    for rank, one in enumerate(seen(name, ranks, tmp_path)):
        expected = counted(CASES[name], rank)
        for step in range(1, STEPS):
            assert one.totals(step) == expected


def test_one_rank_exchanges_nothing():
    assert on_paper(CASES["alone"], 0)[0].traffic() == []


# --- by hand --------------------------------------------------------------------------------------------------------

T, D, LAYERS, FLOAT32 = 32, 32, 2, 4


def rows(case, rank=0, **options):
    return {
        (row.group, row.op, row.purpose): (row.calls, row.bytes) for row in on_paper(case, rank)[0].traffic(**options)
    }


@pytest.mark.parametrize(
    ("mode", "forward", "backward"),
    [("mtp", [], ["all_reduce"]), ("msp", ["all_gather"], ["reduce_scatter"]),
     ("fsp", ["all_gather"], ["all_gather", "reduce_scatter"])],
)  # fmt: skip
def test_what_layers_with_one_input_exchange_is_the_modes_definition(mode, forward, backward):
    found = rows(Case(2, tensor(2, mode)))
    of_layers = {
        key[1:]: counts for key, counts in found.items() if key[2].startswith("layers: ") and "input" in key[2]
    }

    one = 2 * LAYERS, 2 * LAYERS * T * D * FLOAT32  # attention and feed-forward of each block
    expected = {(op, "layers: input"): one for op in forward}
    expected |= {
        (op, "layers: input, again in backward" if op == "all_gather" else "layers: gradient of the input"): one
        for op in backward
    }
    assert of_layers == expected


def test_micro_batches_multiply_all_but_the_reduction():
    one, three = rows(Case(2, tensor(2, "fsp"))), rows(Case(2, tensor(2, "fsp"), dict(data=dict(micro_num=3))))

    of_world = {key for key in one if key[0] == "world"}
    assert of_world and len(one) > len(of_world)
    assert three == {
        key: counts if key in of_world | {("stage_replica", "all_reduce", "gradients of the replicas")} else
        (3 * counts[0], 3 * counts[1])
        for key, counts in one.items()
    }  # fmt: skip


def test_gradients_travel_in_their_own_dtype_and_parameters_in_the_models():
    blocks = dict(model=dict(dtype="torch.bfloat16"))
    whole = rows(Case(4, dict(zero1=dict(size=2)), blocks))
    half = rows(Case(4, dict(zero1=dict(size=2)), blocks | dict(reduce_comm_dtype="torch.bfloat16")))

    scatter = "zero", "reduce_scatter", "gradients to their owners"
    replicas = "zero_replica", "all_reduce", "gradients of the replicas"
    gather = "zero", "all_gather", "new parameters"
    assert whole[scatter] == (1, 2 * half[scatter][1]) and whole[replicas] == (1, 2 * half[replicas][1])
    assert whole[gather] == half[gather] == half[scatter]
    assert whole[replicas][1] == whole[scatter][1] // 2


@pytest.mark.parametrize("names", [(), ("cn", "code", "en")])
def test_metrics_are_summed_for_each_dataset_type(names):
    meter = TokenMeter(names, torch.device("cpu"))
    found = rows(Case(2), types=len(names))
    assert found["world", "all_reduce", "sums of the metrics"] == (1, meter.sums.nbytes)


@pytest.mark.parametrize(
    ("key", "parallel"),
    [
        ("parallel.fsdp.enable=True", dict(fsdp=dict(enable=True))),
        ("parallel.zero1.fsdp=True", dict(zero1=dict(size=-1, fsdp=True))),
        ("parallel.pipeline.size=2", dict(pipeline=dict(size=2))),
    ],
)
def test_what_is_not_counted_is_refused(key, parallel):
    with pytest.raises(UserError, match=f"{key}: traffic and memory of .* are not counted yet"):
        on_paper(Case(2, parallel), 0)


# --- order of events ------------------------------------------------------------------------------------------------


def places(events, op, kind="start", ranks=None):
    return [
        place
        for place, event in enumerate(events)
        if (event.op, event.kind) == (op, kind) and ranks in (None, event.ranks)
    ]


def mark(events, text):
    """The first one of this text."""
    return places(events, text, "mark")[0]


def wait_of(events, start):
    (place,) = [
        place for place, event in enumerate(events) if event.kind == "wait" and event.number == events[start].number
    ]
    return place


@pytest.mark.parametrize("name, overlaps", [("dp4 zero2", True), ("mtp2 dp2 zero2", True), ("dp2 zero2", False)])
def test_gradients_are_reduced_while_backward_runs_only_if_asked(name, overlaps, steps_of):
    events = steps_of(name)[1]
    scatters = places(events, "reduce_scatter")
    of_last_block, backward = mark(events, "backward of block 1 ends"), mark(events, "backward of block 0 ends")

    assert len(scatters) > 2
    assert of_last_block < backward
    if overlaps:
        assert scatters[0] < of_last_block, "the head's bucket goes first"
        assert any(of_last_block < place < backward for place in scatters)
        assert wait_of(events, scatters[0]) > scatters[0] + 1, "other gradients are computed meanwhile"
    else:
        assert backward < scatters[0]


@pytest.mark.parametrize("name, overlaps", [("dp4 zero2", True), ("dp2 zero2", False)])
def test_parameters_are_waited_for_by_the_block_that_reads_them_only_if_asked(name, overlaps, steps_of):
    before, events = steps_of(name)[1:3]
    started = {before[place].number: before[place] for place in places(before, "all_gather")}
    finished = {event.number for event in before if event.kind == "wait"}
    late = [place for place, event in enumerate(events) if event.kind == "wait" and event.number in started]

    assert len(started) > 2
    if overlaps:
        assert not finished & set(started) and len(late) == len(started)
        in_forward = [place for place in late if place > mark(events, "block 0 begins")]
        assert in_forward and max(late) < mark(events, "block 1 begins")
    else:
        assert finished >= set(started) and not late


def test_overlap_changes_no_traffic():
    plain, overlapped = (
        rows(Case(2, dict(zero1=dict(size=2)), dict(hybrid_zero_optimizer=SMALL_BUCKETS | more)))
        for more in ({}, dict(overlap_sync_grad=True, overlap_sync_param=True))
    )
    assert plain == overlapped


CALLS_OF_BLOCK = 4


@pytest.mark.parametrize(
    "name, gathers_of_block, overlaps",
    [("isp2 wp2 by block fused", 1, True), ("isp2 wp2 by call fused", CALLS_OF_BLOCK, True),
     ("isp2 wp2 fused", CALLS_OF_BLOCK, False)],
)  # fmt: skip
def test_weights_of_the_next_block_are_gathered_during_the_one_before_only_if_asked(
    name, gathers_of_block, overlaps, steps_of
):
    events = steps_of(name)[1]
    embedding, *gathers = places(events, "all_gather")
    blocks, head, backward = (
        gathers[: 2 * gathers_of_block],
        gathers[2 * gathers_of_block],
        gathers[2 * gathers_of_block + 1 :],
    )
    second, begins, ends = blocks[gathers_of_block], mark(events, "block 1 begins"), mark(events, "block 0 ends")

    assert len(backward) == len(blocks)
    assert begins < wait_of(events, second)
    assert (second < ends) is overlaps
    assert (head < mark(events, "block 1 ends")) is overlaps
    before = mark(events, "backward of block 1 ends")  # of which the gathers are the first half
    assert (backward[gathers_of_block] < before) is overlaps
    assert before < wait_of(events, backward[gathers_of_block])


@pytest.mark.parametrize(
    "name, overlaps", [("isp2 wp2 by call", True), ("isp2 wp2 by block", True), ("isp2 wp2", False)]
)
def test_gradients_of_weights_are_reduced_beside_backward_only_if_asked(name, overlaps, steps_of):
    events = steps_of(name)[1]
    scatters = places(events, "reduce_scatter")

    assert all((wait_of(events, place) > place + 1) is overlaps for place in scatters[:-1])
    assert max(wait_of(events, place) for place in scatters) < mark(events, END_OF_STEP)


def test_gradients_that_are_released_late_are_waited_for_after_backward(steps_of):
    events = steps_of("isp2 wp2 released late")[1]
    scatters = places(events, "reduce_scatter")

    assert min(wait_of(events, place) for place in scatters) > scatters[-1]
