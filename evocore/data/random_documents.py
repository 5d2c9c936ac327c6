"""Documents for runs without data: to try a config, to measure speed, to test.

Every token is a hash of the seed, the document and its place in it, so nothing is stored and any rank can read any
part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evocore.data.documents import Fragment
from evocore.data.permutation import derive_seed, mix64


class RandomDocuments:
    """``count`` documents of uniform ids in ``1..vocab_size-1`` (id 0 cannot be a target in the file format either).

    Args:
        max_length: length of every document if ``fixed_length``, otherwise lengths are uniform in ``1..max_length``.
    """

    type_names: tuple[str, ...] = ()

    def __init__(self, count: int, max_length: int, vocab_size: int, seed: int, fixed_length: bool) -> None:
        if vocab_size < 2:
            raise ValueError(f"random documents need at least two ids, not vocab_size={vocab_size}")
        self._span = np.uint64(vocab_size - 1)
        self._seeds = mix64(np.arange(count, dtype=np.uint64) ^ np.uint64(derive_seed(seed)))
        self.lengths: NDArray[np.integer] = np.full(count, max_length, np.int32)
        if not fixed_length:
            self.lengths = (mix64(self._seeds) % np.uint64(max_length) + np.uint64(1)).astype(np.int32)

    def type_of(self, document: int) -> int:
        raise ValueError("random documents have no types")

    def describe(self, document: int) -> str:
        return f"random document {document}"

    def read(self, fragments: Sequence[Fragment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = [stop - start for _, start, stop in fragments]
        if not lengths:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.concatenate([np.arange(start, stop, dtype=np.uint64) for _, start, stop in fragments])
        seeds = np.repeat(self._seeds[[document for document, _, _ in fragments]], lengths)
        ids = (mix64(places + seeds) % self._span + np.uint64(1)).astype(np.int64)
        return ids, ids
