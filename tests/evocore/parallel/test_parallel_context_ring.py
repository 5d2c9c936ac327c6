"""Ring attention is attention: results and gradients of every grid, beside one rank that has the whole sequence."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parallel_context_runs import KERNELS, Case, attend, joined, on_threads, whole

from evocore.ops.accuracy import LIMIT, error_ratio
from evocore.ops.attention import CuSeqlens

ONE, PACKED = (0, 48), (0, 5, 6, 12, 31, 31, 40, 48)
"""One document; and many, of which some end where chunks do, and one is empty."""


def check(case, found):
    """To the rule of kernels, and, in float32, to 1e-5."""
    plain, exact = whole(case, case.dtype), whole(case, torch.float64)
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        assert ours.dtype == case.dtype
        assert error_ratio(ours, theirs, truth) <= LIMIT, case
        if case.dtype == torch.float32:
            assert (ours - truth).norm() <= 1e-5 * truth.norm(), case


def check_all(ranks, world, cases):
    results = ranks(world, attend, cases)
    for number, case in enumerate(cases):
        check(case, joined([result[number] for result in results]))


def test_two_processes(ranks):
    cases = [
        Case(cuts, context=2, window=window, kernel=kernel)
        for cuts in (ONE, PACKED)
        for window in (1, 2)
        for kernel in KERNELS
    ]
    check_all(ranks, 2, [*cases, Case(PACKED, heads=2, kv_heads=2, softcap=1.5)])


def test_four_processes_in_a_ring(ranks):
    cases = [Case(cuts, context=4, window=window) for cuts in (ONE, PACKED) for window in (1, 2, 4)]
    placed = [Case(PACKED, context=4, window=1, head_first=False, interleaved=True)]
    check_all(ranks, 4, cases + placed)


def test_four_processes_that_share_heads_and_context(ranks):
    cases = [
        Case(cuts, head=2, context=2, window=window, head_first=first, kv_heads=kv_heads)
        for cuts in (ONE, PACKED)
        for window in (1, 2)
        for first in (True, False)
        for kv_heads in (1, 4)
    ]
    check_all(ranks, 4, cases)


# --- on threads: any number of ranks, and a library in which whoever waits in a circle waits for ever ---------------


@pytest.mark.parametrize(
    ("context", "window", "interleaved"),
    [(3, 1, False), (3, 3, False), (6, 3, False), (6, 2, False), (8, 2, True), (8, 4, False)],
)
@pytest.mark.parametrize("cuts", [ONE, PACKED], ids=["one", "packed"])
def test_nobody_waits_in_a_circle(context, window, interleaved, cuts):
    case = Case(cuts, context=context, window=window, head_first=False, interleaved=interleaved)
    check(case, joined(on_threads(case, lambda rank: rank.attend())))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])
@given(st.data())
def test_any_documents(data):
    context, window = data.draw(st.sampled_from([(2, 1), (2, 2), (3, 1), (4, 2), (4, 4)]))
    total = 2 * context * data.draw(st.integers(1, 4))
    cuts = (0, *sorted(data.draw(st.lists(st.integers(0, total), max_size=5))), total)
    case = Case(cuts, context=context, window=window)
    check(case, joined(on_threads(case, lambda rank: rank.attend())))


def test_low_precision_is_merged_in_float32():
    case = Case((0, 3, 16), context=4, window=2, dtype=torch.bfloat16, kernel="reference", heads=2, kv_heads=1)
    check(case, joined(on_threads(case, lambda rank: rank.attend())))


def test_ranks_keep_nothing_of_others_for_backward():
    def kept(rank):
        found = []
        inputs, _ = rank.inputs()
        with torch.autograd.graph.saved_tensors_hooks(lambda x: found.append(x) or x, lambda x: x):
            rank.attention(*inputs, **rank.case.options)
        return [list(x.shape) for x in found], found[:3], inputs

    q, k, lse = [12, 4, 8], [12, 2, 8], [12, 4]
    for shapes, saved, inputs in on_threads(Case(PACKED, context=4, window=2), kept):
        assert shapes == [q, k, k, q, lse]
        assert [x.data_ptr() for x in saved] == [x.data_ptr() for x in inputs], "as they are, without a copy"


def test_what_a_ring_cannot_do_is_refused():
    def refuse(rank):
        inputs, _ = rank.inputs()
        others = rank.case.options | dict(k_documents=CuSeqlens.of([0, 48]))
        with pytest.raises(ValueError, match="the documents of keys must be those of the queries"):
            rank.attention(*inputs, **others)
        for more in (dict(window=3), dict(causal=False)):
            with pytest.raises(ValueError, match="causal and has no window"):
                rank.attention(*inputs, **rank.case.options, **more)

    on_threads(Case(PACKED), refuse)
