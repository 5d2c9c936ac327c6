"""When weights are gathered and gradients reduced, how often, and what is alive meanwhile."""

import pytest
import torch
from parallel_isp_model import LAYERS, Case, Rank, expected_step, step
from torch.utils.flop_counter import FlopCounterMode

from evocore.config.schema_parallel import Weight
from evocore.nn.layers import Linear
from evocore.nn.roles import Role
from evocore.parallel.isp.plan import make_plan

BLOCK = 5  # weights of a block: wqkv, wo, w1, w3, w2
WEIGHTS = LAYERS * BLOCK + 2
BY_BLOCK = dict(overlap=True, forward_overlap_per="layer")
BY_CALL = dict(overlap=True, forward_overlap_per="module")


def events(**case):
    rank = Rank.pretended(Case(1, 2, **case))
    step(rank, micro_batches=1)
    return rank.recording.events


def gathers(events):
    """For each gather the number of its start and of its wait in the list of events."""
    starts = [place for place, event in enumerate(events) if (event.op, event.kind) == ("all_gather", "start")]
    waits = {event.number: place for place, event in enumerate(events) if event.kind == "wait"}
    return [(start, waits[events[start].number]) for start in starts]


def mark_before(events, place):
    """The last kernel that was called before an event."""
    return next((event.op for event in reversed(events[:place]) if event.kind == "mark"), None)


# --- when -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before, kernel",
    [
        ("wqkv", "rms_norm layers.{}.attention_norm"),
        ("attn", "rotary layers.{}.attention"),
        ("wo", "attention layers.{}.attention"),
        ("w1", "rms_norm layers.{}.ffn_norm"),
    ],
)
def test_the_next_block_is_started_where_asked_and_waited_for_where_used(before, kernel):
    seen = events(settings=BY_BLOCK | dict(launch_allgather_before=before, layer_fuse_isp_comm=True))
    embedding, *blocks, head = gathers(seen)[: LAYERS + 2]

    assert embedding[0] < blocks[0][0] < embedding[1]
    for number, (start, wait) in enumerate([*blocks, head]):
        where = mark_before(seen, start)
        assert where is None if number == 0 else where.removeprefix("add_") == kernel.format(number - 1)
        norm = "norm" if number == LAYERS else f"layers.{number}.attention_norm"
        assert mark_before(seen, wait).removeprefix("add_") == f"rms_norm {norm}"


@pytest.mark.parametrize("recomputed", [False, True])
def test_backward_starts_a_block_while_the_one_behind_it_computes(recomputed):
    seen = events(model=dict(checkpoint=float(recomputed)), settings=BY_BLOCK | dict(layer_fuse_isp_comm=True))
    backward = gathers(seen)[LAYERS + 2 :]
    reductions = [place for place, event in enumerate(seen) if (event.op, event.kind) == ("reduce_scatter", "start")]

    assert len(backward) == LAYERS
    assert backward[0][0] < reductions[0], "the last block is started before the head's gradient is reduced"
    for number, (start, wait) in enumerate(backward[1:]):
        of_block_behind = reductions[1 + number * BLOCK :][:BLOCK]
        assert start < of_block_behind[0] and of_block_behind[-1] < wait
        if recomputed:
            last = LAYERS - 1 - number
            assert mark_before(seen, start) == f"swiglu layers.{last}.feed_forward"
            assert mark_before(seen, wait).endswith(f"layers.{last - 1}.attention_norm")


@pytest.mark.parametrize("recomputed", [False, True])
def test_by_module_the_next_call_is_started_when_one_begins(recomputed):
    seen = events(model=dict(checkpoint=float(recomputed)), settings=BY_CALL | dict(layer_fuse_isp_comm=True))
    calls = gathers(seen)

    forward, backward = calls[: 4 * LAYERS + 2], calls[4 * LAYERS + 2 :]
    assert len(backward) == 4 * LAYERS
    assert_each_is_started_when_the_one_before_begins(forward)
    if recomputed:
        for block in range(LAYERS):
            assert_each_is_started_when_the_one_before_begins(backward[4 * block :][:4])
    else:
        assert_each_is_started_when_the_one_before_begins(backward)
    order = [seen[start].bytes for start, _ in calls]
    qkv, out, gate_up, down = order[1:5]
    in_backward = [qkv, out, gate_up, down] if recomputed else [down, gate_up, out, qkv]
    assert order[2 + 4 * LAYERS :] == in_backward * LAYERS


def assert_each_is_started_when_the_one_before_begins(calls):
    for (_, wait), (next_start, _), (after_next, _) in zip(calls, calls[1:], calls[2:], strict=False):
        assert next_start < wait < after_next


def test_without_overlap_everything_is_waited_for_at_once():
    seen = events(settings=dict(layer_fuse_isp_comm=True))
    exchanges = [event for event in seen if event.kind != "mark"]

    for start, wait in zip(exchanges[::2], exchanges[1::2], strict=True):
        assert (start.kind, wait.kind, start.number) == ("start", "wait", wait.number)


# --- how often ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recomputed", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("settings", [{}, BY_BLOCK, BY_CALL])
def test_each_weight_is_gathered_once_in_forward_and_once_in_backward(settings, recomputed):
    seen = events(model=dict(checkpoint=recomputed), settings=settings)

    started = [event.op for event in seen if event.kind == "start"]
    assert started.count("all_gather") == WEIGHTS + LAYERS * BLOCK  # the edges need none in backward
    assert started.count("reduce_scatter") == WEIGHTS
    assert len(started) == 2 * WEIGHTS + LAYERS * BLOCK


def test_recomputation_skips_the_last_product_of_a_block():
    def recomputed_flops(step_of):
        flops = []
        for checkpoint in (0.0, 1.0):
            with FlopCounterMode(display=False) as counter:
                step_of(Case(1, 2, model=dict(checkpoint=checkpoint)))
            flops.append(counter.get_total_flops())
        return flops[1] - flops[0]

    ours, expected = recomputed_flops(lambda case: step(Rank.pretended(case))), recomputed_flops(expected_one)

    assert ours == expected > 0


def expected_one(case):
    return expected_step(case, data_size=1)


# --- what is alive --------------------------------------------------------------------------------------------------


def watched(recomputed, settings):
    """Sizes of an edge's weight and of a block's, in order; what was alive during a step; what still is."""
    rank = Rank.pretended(Case(1, 2, model=dict(checkpoint=recomputed), settings=settings))
    edge = 2 * rank.model.output.weight.nbytes
    block = [2 * layer.weight.nbytes for layer in rank.model.layers[0].modules() if isinstance(layer, Linear)]
    step(rank, micro_batches=1)
    with torch.no_grad():
        rank.loss(0)
    left = len(rank.pretended.gathered()) + len(rank.pretended.unreduced())
    return edge, block, max(rank.pretended.gathered_bytes), max(rank.pretended.whole_gradients), left


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("recomputed", [0.0, 1.0])
def test_two_blocks_are_alive_at_most(recomputed, fused):
    settings = BY_BLOCK | dict(launch_allgather_before="wqkv", layer_fuse_isp_comm=fused)
    edge, block, most, _, left = watched(recomputed, settings)

    assert most == 2 * sum(block)
    assert left == 0


def test_of_a_block_two_calls_are_alive():
    edge, (qkv, out, gate, up, down), most, _, left = watched(0.0, BY_CALL)

    assert most == edge + qkv
    assert left == 0


def test_without_overlap_one_call_is_alive():
    edge, (qkv, out, gate, up, down), most, _, left = watched(0.0, {})

    assert most == max(edge, qkv, gate + up)
    assert left == 0


def test_without_overlap_a_recomputed_block_is_alive_alone():
    edge, block, most, _, left = watched(1.0, {})

    assert most == sum(block)
    assert left == 0


@pytest.mark.parametrize("early, most", [(True, 3), (False, WEIGHTS)])
def test_whole_gradients_are_freed_early_if_asked(early, most):
    _, _, _, whole_gradients, left = watched(0.0, BY_BLOCK | dict(early_reduce_scatter_release=early))

    assert whole_gradients == most  # early: those of one call with two weights, and of the call before
    assert left == 0


def test_weights_started_for_nothing_are_dropped_after_backward():
    rank = Rank.pretended(Case(1, 2, settings=BY_BLOCK))
    block = rank.model.layers[0]
    for frozen in (rank.model.tok_embeddings, block.attention_norm, block.feed_forward.w3):
        frozen.weight.requires_grad_(False)

    step(rank, micro_batches=1)

    assert len(rank.delivered) == WEIGHTS - 2
    assert not rank.pretended.gathered()


def test_kept_buffers_alternate():
    rank = Rank.pretended(Case(1, 2, settings=BY_BLOCK | dict(layer_fuse_isp_comm=True), keeps_buffers=True))

    step(rank, micro_batches=1)
    after_one = rank.pretended.gathered()
    step(rank, micro_batches=1)

    assert len(after_one) == 2 and rank.pretended.gathered() == after_one


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_parameters_under_way_are_waited_for_before_they_are_sent():
    rank = Rank.pretended(Case(1, 2, settings=BY_BLOCK))
    names = {parameter: name for name, parameter in rank.model.named_parameters()}
    read = []
    rank.weights.before_read = lambda parameter: read.append(names[parameter])

    with torch.no_grad():
        rank.loss(0)

    order = [name.split(".weight")[0] for name in rank.placements]
    assert [name.split(".weight")[0] for name in read] == order


def test_a_forgotten_finish_is_noticed():
    rank = Rank.pretended(Case(1, 2, settings=BY_BLOCK))
    rank.loss(0).backward()

    with pytest.raises(RuntimeError, match="finish"):
        rank.loss(1)
    rank.weights.finish()
    rank.weights.finish()
    rank.loss(1)

    assert len(rank.delivered) == WEIGHTS


def test_a_linear_layer_that_nobody_gathers_for_is_refused():
    model = torch.nn.Sequential(Linear(4, 4, role=Role.ROUTER, dtype=torch.float32, init_std=0.1))

    with pytest.raises(ValueError, match="role router"):
        make_plan(model, Weight())
