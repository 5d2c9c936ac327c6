"""Every byte that ranks exchange in a step is in the formula, and what should run beside compute is started there."""

import pytest
import torch
from parallel_counted_cases import (
    CASES,
    FSDP,
    LLAMA,
    SMALL_BUCKETS,
    STEPS,
    Case,
    deep,
    experts,
    mixture,
    pipeline,
    sharded,
    tensor,
)
from parallel_counted_runs import DIRECTIONS, END_OF_STEP, on_paper, routed, seen

from evocore.parallel.traffic import Routed
from evocore.training.metrics import TokenMeter


@pytest.fixture
def steps_of(ranks, tmp_path):
    """Of a case and a rank the events of each step."""
    return lambda name, rank=0: seen(name, ranks, tmp_path)[rank].steps


def counted(case, rank, rows):
    """The formula's calls and bytes by op and ranks, or direction; ``rows`` are those of experts."""
    paper, layout = on_paper(case, rank)
    found = {}
    for exchange in paper.traffic(routed=rows):
        group = exchange.group
        key = exchange.op, group if group in DIRECTIONS.values() else layout.topology.group_of(group, rank)
        calls, size = found.get(key, (0, 0))
        found[key] = calls + exchange.calls, size + exchange.bytes
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_ranks_exchange_in_a_step_is_what_the_formula_says(name, ranks, tmp_path):
    case, of_ranks = CASES[name], seen(name, ranks, tmp_path)
    for rank, one in enumerate(of_ranks):
        for step in range(1, STEPS):
            assert one.totals(step) == counted(case, rank, routed(case, of_ranks, rank, step) or None)


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


ACTIVATION = T * D * FLOAT32


@pytest.mark.parametrize(
    ("schedule", "rank", "messages"),
    [
        ("1F1B", 1, {"send pipeline": 1, "send pipeline_down": 1, "recv pipeline": 1, "recv pipeline_down": 1}),
        ("ZBH1", 3, {"recv pipeline": 1, "send pipeline_down": 1}),
        ("ZBV", 0, {"send pipeline": 2, "recv pipeline_down": 2}),
        ("ZBV", 3, {"recv pipeline": 2, "send pipeline_down": 2}),  # the turn of the V is on this rank
    ],
)
def test_a_stage_exchanges_one_tensor_for_each_chunk_beside_one_of_its_own(schedule, rank, messages):
    found = rows(Case(4, pipeline(4, schedule), deep(8, 3)), rank)
    of_pipeline = {}
    for (group, op, _), (calls, size) in found.items():
        if group in DIRECTIONS.values():
            before = of_pipeline.get(f"{op} {group}", (0, 0))
            of_pipeline[f"{op} {group}"] = before[0] + calls, before[1] + size

    assert of_pipeline == {key: (3 * count, 3 * count * ACTIVATION) for key, count in messages.items()}


def test_messages_are_what_a_rank_has_between_layers():
    key = "pipeline", "send", "activations to the next chunk"
    plain = rows(Case(2, pipeline(2, "1F1B")))[key]
    wide = dict(model=dict(dtype="torch.bfloat16", residual_in_fp32=True))

    assert plain == (1, ACTIVATION)
    assert rows(Case(2, pipeline(2, "1F1B"), wide))[key] == (2, ACTIVATION + ACTIVATION // 2)
    for parallel in (tensor(2, "msp"), tensor(2, "fsp"), sharded(2, 1)):
        assert rows(Case(4, pipeline(2, "1F1B") | parallel))[key] == (1, ACTIVATION // 2)
    assert rows(Case(4, pipeline(2, "1F1B") | tensor(2, "mtp")))[key] == plain


def test_experts_get_as_many_rows_as_they_take_and_backward_moves_as_many():
    layers, chosen = 2, 2 * ACTIVATION

    def moved(**capacity):
        found = rows(Case(2, mixture(2), experts("GShard", **capacity)))
        return {purpose: counts for (group, _, purpose), counts in found.items() if group == "expert"}

    assert moved(capacity_factor=4.0) == {
        "how many rows go to each expert": (layers, layers * 4 * 8),
        "rows to their experts": (layers, layers * chosen),
        "results of experts to their tokens": (layers, layers * chosen),
        "gradients of the results of experts": (layers, layers * chosen),
        "gradients of the rows of experts": (layers, layers * chosen),
    }
    assert moved(capacity_factor=0.5, min_capacity=1)["rows to their experts"] == (layers, layers * chosen // 2)


def test_rows_that_were_counted_take_the_place_of_an_even_spread():
    found = rows(Case(2, mixture(2), experts()), routed={0: Routed(5, 7), 1: Routed(0, 0)})

    assert found["expert", "all_to_all", "rows to their experts"] == (2, 5 * D * FLOAT32)
    assert found["expert", "all_to_all", "results of experts to their tokens"] == (2, 7 * D * FLOAT32)


def test_what_stays_gathered_is_gathered_when_it_is_gone():
    """The stage before the last begins with two forwards, for which the end of its chunk is gathered once."""
    forward, backward = (("zero", "all_gather", f"matrices for {when}") for when in ("forward", "backward"))
    model = LLAMA | deep(4, 4)
    first, last = (rows(Case(4, pipeline(2, "1F1B") | FSDP, model), rank) for rank in (0, 2))
    micro, blocks = 4, 2

    assert last[forward][0] == micro * (blocks + 1) and last[backward][0] == micro * blocks
    assert first[forward][0] == micro * (blocks + 1) - 1
    assert first[backward][0] == micro * (blocks - 1) + 1


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
