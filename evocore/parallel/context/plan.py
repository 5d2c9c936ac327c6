"""What a rank's queries see of another rank's keys, worked out on the host from the ends of the documents.

Under the causal mask and in zigzag there are two cases, whatever the documents:

- Own keys: the rank's tokens are in order, so they see one another causally in what they hold of each document.
- Those of another rank: either all its tokens that may be seen come before all those that may see them, or the other
  way round. Between these lies one edge of a chunk, and only the document that spans it has tokens on both sides. All
  its queries here see all its keys there: a full rectangle, in which no mask is needed; or none, if documents meet
  at the edge.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from evocore.ops.attention import CuSeqlens
from evocore.parallel.context.zigzag import chunk_ranges, tokens_before
from evocore.parallel.sharding import Part


@dataclass(frozen=True)
class Pair:
    """One call of ``attention_block``. Tokens are counted among those that a rank has.

    Attributes:
        queries, keys: this rank's queries and the other's keys that take part.
        q_cuts, k_cuts: cumulative lengths of the documents in ``queries`` and ``keys``.
        causal: as in the contract.
    """

    queries: slice
    keys: slice
    q_cuts: tuple[int, ...]
    k_cuts: tuple[int, ...]
    causal: bool


def pair(cuts: Sequence[int], mine: int, theirs: int, parts: int) -> Pair | None:
    """What the queries of place ``mine`` in a context group of ``parts`` ranks see of the keys of place ``theirs``.

    Args:
        cuts: cumulative lengths of the documents, 0 first; the last is a multiple of ``2 * parts``.

    Returns:
        None if they see none.
    """
    total = cuts[-1]
    assert total % (2 * parts) == 0, (total, parts)
    queries, keys = (chunk_ranges(total, Part(place, parts)) for place in (mine, theirs))
    if mine == theirs:
        own = tuple(sorted({tokens_before(queries, cut) for cut in cuts}))
        return Pair(slice(0, own[-1]), slice(0, own[-1]), own, own, causal=True)
    # Of an earlier rank the first chunk comes before both of mine, the second after. My second comes after both of a
    # later rank's, my first before.
    edge = keys[0][1] if theirs < mine else queries[1][0]
    after = bisect_right(cuts, edge)
    begin, end = cuts[after - 1], cuts[after]  # of the document behind the edge, which may begin there
    seeing = slice(tokens_before(queries, edge), tokens_before(queries, end))
    seen = slice(tokens_before(keys, begin), tokens_before(keys, edge))
    if seeing.start == seeing.stop or seen.start == seen.stop:
        return None
    return Pair(seeing, seen, (0, seeing.stop - seeing.start), (0, seen.stop - seen.start), causal=False)


@dataclass(frozen=True)
class Call:
    """A ``Pair`` with its documents on the device."""

    queries: slice
    keys: slice
    q_documents: CuSeqlens
    k_documents: CuSeqlens
    causal: bool


Plan = list[Call | None]
"""The call for the keys of each place in the context group."""


class Plans:
    """Plans of one rank by the documents they were made for: all layers of a model share one for each micro-batch.

    A plan lives as long as its documents do.

    Args:
        context: place of the rank in its context group.
    """

    def __init__(self, context: Part) -> None:
        self._context = context
        self._plans: WeakKeyDictionary[CuSeqlens, Plan] = WeakKeyDictionary()

    def of(self, documents: CuSeqlens) -> Plan:
        """For the documents of the whole sequence."""
        if documents not in self._plans:
            self._plans[documents] = self._make(documents)
        return self._plans[documents]

    def _make(self, documents: CuSeqlens) -> Plan:
        device = documents.device.device
        known: dict[tuple[int, ...], CuSeqlens] = {}

        def on_device(cuts: tuple[int, ...]) -> CuSeqlens:
            if cuts not in known:
                known[cuts] = CuSeqlens.of(cuts, device)
            return known[cuts]

        def call(one: Pair | None) -> Call | None:
            if one is None:
                return None
            return Call(one.queries, one.keys, on_device(one.q_cuts), on_device(one.k_cuts), one.causal)

        index, parts = self._context.index, self._context.parts
        return [call(pair(documents.host, index, theirs, parts)) for theirs in range(parts)]
