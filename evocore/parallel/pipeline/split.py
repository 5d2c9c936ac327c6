"""Which layers belong to which chunk of the model."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise


def split_layers(layers: int, chunks: int, counts: Sequence[int] | None = None) -> list[range]:
    """Contiguous ranges of layers, one for each chunk.

    Args:
        counts: layers of each chunk, where that is chosen. Otherwise they are even, and what is left over goes one
            by one to the chunks in the middle, then to the first, which has the embedding, and at last to the last,
            which has the head and the loss.

    Raises:
        ValueError: if there are fewer layers than chunks, or ``counts`` are not the layers of so many chunks.
    """
    if counts is None:
        if layers < chunks:
            raise ValueError(f"{layers} layers for {chunks} chunks")
        size, rest = divmod(layers, chunks)
        favoured = [*range(1, chunks - 1), 0, chunks - 1][:rest]
        counts = [size + (chunk in favoured) for chunk in range(chunks)]
    if len(counts) != chunks or sum(counts) != layers or min(counts) < 1:
        raise ValueError(f"{list(counts)} are not {layers} layers in {chunks} chunks")
    edges = [0, *accumulate(counts)]
    return [range(start, stop) for start, stop in pairwise(edges)]
