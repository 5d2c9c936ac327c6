"""Which tokens of a sequence a rank holds.

A sequence is cut into 2 C chunks for the C ranks of a context group, and the rank of place c has chunks c and
2 C - 1 - c: an early one, whose queries see little, and a late one, whose queries see much. The ranks of a head group
have the same two chunks between them: end to end, cut into equal runs in rank order. An exchange of tokens for heads,
which puts what ranks send in rank order, thereby rebuilds the two chunks.
"""

from __future__ import annotations

from collections.abc import Sequence

from evocore.parallel.sharding import Part

Ranges = list[tuple[int, int]]
"""Start and stop of runs of tokens, in ascending order."""


def chunk_ranges(total: int, context: Part) -> Ranges:
    """The two chunks of one place in the context group; ``total`` is a multiple of twice its size."""
    chunks = 2 * context.parts
    places = (context.index, chunks - 1 - context.index)
    return [(total * place // chunks, total * (place + 1) // chunks) for place in places]


def own_ranges(total: int, head: Part, context: Part) -> Ranges:
    """The tokens of one rank, neighbouring runs in one.

    Args:
        total: tokens of the sequence, a multiple of the ranks and, if the context is divided, of twice its parts.
        head: place of the rank in its head group.
        context: likewise.
    """
    length = total // (head.parts * context.parts)
    first, last = head.index * length, (head.index + 1) * length
    found: Ranges = []
    before = 0
    for start, stop in chunk_ranges(total, context):
        low, high = (start + min(max(edge - before, 0), stop - start) for edge in (first, last))
        before += stop - start
        if low < high and found and found[-1][1] == low:
            low = found.pop()[0]
        if low < high:
            found.append((low, high))
    return found


def tokens_before(ranges: Sequence[tuple[int, int]], position: int) -> int:
    """How many of the tokens in ``ranges`` come before a position of the sequence."""
    return sum(min(max(position - start, 0), stop - start) for start, stop in ranges)
