"""Who holds which tokens, who sees whose keys, and the way these take: arithmetic, for grids of any size."""

import gc
import weakref
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parallel_context_runs import Case

from evocore.backend import Backend
from evocore.ops.attention import CuSeqlens
from evocore.ops.collectives import Collectives
from evocore.parallel.context import Rings, own_ranges
from evocore.parallel.context.plan import Plans, pair
from evocore.parallel.context.zigzag import chunk_ranges
from evocore.parallel.groups import Groups
from evocore.parallel.sharding import Part


def tokens(ranges):
    return [token for start, stop in ranges for token in range(start, stop)]


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_early_chunks_go_with_late_ones():
    assert [chunk_ranges(24, Part(place, 3)) for place in range(3)] == [
        [(0, 4), (20, 24)],
        [(4, 8), (16, 20)],
        [(8, 12), (12, 16)],
    ]
    assert own_ranges(24, Part(1, 2), Part(2, 3)) == [(12, 16)]
    assert own_ranges(24, Part(0, 1), Part(2, 3)) == [(8, 16)], "neighbours in one"
    assert own_ranges(24, Part(1, 4), Part(0, 3)) == [(2, 4)]
    assert own_ranges(24, Part(1, 3), Part(0, 2)) == [(4, 6), (18, 20)], "a run across both chunks"


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_every_token_has_one_rank_and_a_head_group_has_two_chunks_in_order(heads, parts, unit):
    total = 2 * heads * parts * unit
    held = []
    for place in range(parts):
        context = Part(place, parts)
        of_ranks = [tokens(own_ranges(total, Part(head, heads), context)) for head in range(heads)]
        assert {len(own) for own in of_ranks} == {total // (heads * parts)}
        assert sum(of_ranks, []) == tokens(chunk_ranges(total, context))
        held += sum(of_ranks, [])
    assert sorted(held) == list(range(total))


@given(st.integers(1, 6), st.integers(1, 5))
def test_without_context_parts_are_contiguous(heads, length):
    parts = [own_ranges(heads * length, Part(head, heads), Part(0, 1)) for head in range(heads)]

    assert parts == [[(head * length, (head + 1) * length)] for head in range(heads)]


# --- plans ----------------------------------------------------------------------------------------------------------


@st.composite
def sequences(draw, most_parts=6):
    """Ranks of a context group, and the ends of documents, some of them empty."""
    parts = draw(st.integers(1, most_parts))
    total = 2 * parts * draw(st.integers(1, 5))
    return parts, (0, *sorted(draw(st.lists(st.integers(0, total), max_size=6))), total)


def seen(one):
    """The mask of a pair, by the words of the contract."""
    mask = torch.zeros(one.q_cuts[-1], one.k_cuts[-1], dtype=torch.long)
    for (start, stop), (k_start, k_stop) in zip(pairwise(one.q_cuts), pairwise(one.k_cuts), strict=True):
        block = torch.ones(stop - start, k_stop - k_start, dtype=torch.long)
        mask[start:stop, k_start:k_stop] = block.tril(block.shape[1] - block.shape[0]) if one.causal else block
    return mask


@settings(max_examples=200, deadline=None)
@given(sequences())
def test_all_pairs_together_are_the_causal_mask_of_the_documents_exactly_once(sequence):
    parts, cuts = sequence
    total = cuts[-1]
    held = [torch.tensor(tokens(chunk_ranges(total, Part(place, parts)))) for place in range(parts)]
    met = torch.zeros(total, total, dtype=torch.long)
    for mine in range(parts):
        for theirs in range(parts):
            one = pair(cuts, mine, theirs, parts)
            if one is not None:
                met[held[mine][one.queries][:, None], held[theirs][one.keys]] += seen(one)
    document = torch.bucketize(torch.arange(total), torch.tensor(cuts[1:]), right=True)
    expected = (document[:, None] == document).long().tril()
    assert torch.equal(met, expected)


@given(st.integers(2, 6), st.integers(1, 5))
def test_with_one_document_every_rank_has_as_much_to_do_with_every_block(parts, length):
    for mine in range(parts):
        for theirs in range(parts):
            one = pair((0, 2 * parts * length), mine, theirs, parts)
            work = int(seen(one).sum())
            assert work == (2 * length * length if mine != theirs else length * (2 * length + 1))


def test_a_plan_is_made_once_and_lives_as_long_as_its_documents():
    plans = Plans(Part(0, 2))
    documents = CuSeqlens.of([0, 3, 16])
    plan = plans.of(documents)
    assert plans.of(documents) is plan and plans.of(CuSeqlens.of([0, 3, 16])) is not plan
    watched, plan_of = weakref.ref(documents), weakref.ref(plan[0].q_documents)
    del documents, plan
    gc.collect()
    assert watched() is None and plan_of() is None


# --- rings ----------------------------------------------------------------------------------------------------------


class Unconnected(Backend):
    def new_group(self, ranks):
        return tuple(ranks)


GRIDS = [
    Case((0,), head=head, context=context, window=window, head_first=first, interleaved=interleaved)
    for head, context, window, interleaved in [
        (1, 2, 1, False), (1, 2, 2, False), (2, 3, 3, False), (2, 4, 2, False), (3, 8, 4, False), (1, 4, 1, True),
        (2, 8, 2, True), (1, 12, 3, True), (2, 6, 2, False),
    ]
    for first in (True, False)
]  # fmt: skip


@pytest.mark.parametrize("case", GRIDS, ids=str)
def test_a_rank_has_every_block_once_each_from_the_rank_before(case):
    topology = case.topology()
    rings = [Rings.of(Groups(topology, rank, Unconnected(), Collectives())) for rank in range(case.ranks)]
    windows = case.context // case.window
    for rank, mine in enumerate(rings):
        way = [(outer, inner) for outer in range(windows) for inner in range(case.window)]
        assert sorted(mine.owner(*at) for at in way) == list(range(case.context))
        assert mine.owner(0, 0) == mine.place.index == topology.index("context", rank)
        for outer, inner in way:
            ring, at = (
                (mine.intra_window, (outer, inner - 1)) if inner else (mine.inter_window, (max(outer - 1, 0), 0))
            )
            before = ring.ranks[ring.rank - 1] if (outer, inner) != (0, 0) else rank
            assert mine.owner(outer, inner) == rings[before].owner(*at)
