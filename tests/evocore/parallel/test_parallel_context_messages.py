"""How many messages a call of ring attention takes, how large they are, and that compute goes on beside them."""

import pytest
import torch
from parallel_context_runs import Case, record
from parallel_counted_cases import LLAMA, STEPS, tensor
from parallel_counted_cases import Case as Run
from parallel_counted_runs import on_paper, run

from evocore.parallel.context.messages import messages

TOKENS, KV_HEADS, WIDTH, FLOAT32 = 48, 2, 8, 4


def counts(events, op):
    """Messages of each size, by the ranks that exchange them."""
    found = {}
    for event in events:
        if event.kind == "start" and event.op == op:
            key = event.ranks, event.bytes
            found[key] = found.get(key, 0) + 1
    return found


@pytest.mark.parametrize("window", [1, 2, 4])
def test_messages_are_those_of_the_formula(ranks, window):
    case = Case((0, 5, TOKENS), context=4, window=window)
    windows = 4 // window
    topology = case.topology()
    elements = 2 * TOKENS // 4 * KV_HEADS * WIDTH
    formula = messages(window, windows, elements, FLOAT32)
    blocks, sums = formula[: len(formula) // 2], formula[len(formula) // 2 :]

    assert sum(one.forward for one in formula) == 3 and all(one.bytes == elements * FLOAT32 for one in formula)
    assert sum(one.backward for one in blocks) == 3
    assert sum(one.backward for one in sums) == {1: 4, 2: 4 + 2, 4: 4}[window]
    for rank, (forward, backward) in enumerate(ranks(4, record, case)):
        for events, number in ((forward, "forward"), (backward, "backward")):
            sent, received = {}, {}
            for one in formula:
                if getattr(one, number):
                    ring = topology.group_of(one.group, rank)
                    place, size = ring.index(rank), len(ring)
                    to, come = (rank, ring[(place + 1) % size]), (ring[place - 1], rank)
                    sent[to, one.bytes] = sent.get((to, one.bytes), 0) + getattr(one, number)
                    received[come, one.bytes] = received.get((come, one.bytes), 0) + getattr(one, number)
            assert counts(events, "send") == sent and counts(events, "recv") == received


def test_gradients_of_half_precision_travel_in_float32():
    found = {one.group: one.bytes for one in messages(2, 2, 100, torch.bfloat16.itemsize)}

    assert found == dict(intra_window=200, inter_window=200, dkv_intra_window=400, dkv_inter_window=400)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_compute_goes_on_beside_every_block_that_travels(ranks, window):
    """The last sums alone have nothing left to be beside."""
    for forward, backward in ranks(4, record, Case((0, TOKENS), context=4, window=window)):
        for events, exposed in ((forward, 0), (backward, 2 if window == 2 else 1)):
            computing = [place for place, event in enumerate(events) if event.op == "compute"]
            assert len(computing) == 4
            alone = 0
            for start, event in enumerate(events):
                if event.op == "recv" and event.kind == "start":
                    (end,) = [
                        place
                        for place, other in enumerate(events)
                        if other.kind == "wait" and other.number == event.number
                    ]
                    alone += not any(start < place < end for place in computing)
            assert alone == exposed


def test_a_window_is_fetched_during_the_whole_round_before(ranks):
    """Two computations beside the message between windows, one beside each within."""
    for forward, _ in ranks(4, record, Case((0, TOKENS), context=4, window=2)):
        waits = {event.number: place for place, event in enumerate(forward) if event.kind == "wait"}
        beside = [
            sum(other.op == "compute" for other in forward[start : waits[event.number]])
            for start, event in enumerate(forward)
            if event.op == "recv" and event.kind == "start"
        ]
        assert beside == [2, 1, 1]


def grid(head, context, window, weight=1):
    two = dict(enable=True, head_size=head, context_size=context, window_size=window)
    return tensor(head * context, "isp", weight=dict(size=weight), sequence_2D=two)


@pytest.mark.parametrize(
    "case",
    [
        Run(4, grid(2, 2, 1, weight=2), dict(model=dict(checkpoint=1.0)) | LLAMA),
        Run(4, grid(2, 2, 1), dict(model=dict(checkpoint=1.0), selective_checkpoint=True) | LLAMA),
        Run(4, grid(1, 4, 2), dict(data=dict(micro_num=2))),
    ],
    ids=["head2 context2 recompute", "head2 context2 recompute but attention", "context4 window2 micro2"],
)
def test_a_step_exchanges_what_is_counted_before_it(case, ranks, tmp_path):
    """All other exchanges by their ranks, messages by their number and bytes."""
    for rank, one in enumerate(ranks(case.world, run, case, tmp_path)):
        paper, layout = on_paper(case, rank)
        expected = {}
        for exchange in paper.traffic():
            message = exchange.op in ("send", "recv")
            key = exchange.op, None if message else layout.topology.group_of(exchange.group, rank)
            calls, size = expected.get(key, (0, 0))
            expected[key] = calls + exchange.calls, size + exchange.bytes
        for step in range(1, STEPS):
            found = {}
            for (op, members), (calls, size) in one.totals(step).items():
                key = op, None if op in ("send", "recv") else members
                before = found.get(key, (0, 0))
                found[key] = before[0] + calls, before[1] + size
            assert found == expected
        assert expected["send", None] == expected["recv", None]
