"""What all ways of making micro-batches out of documents share.

A pack is one micro-batch: its number says which tokens it holds, so any rank can make any pack at any time.

Shapes: T = ``packed_length`` = seq_len * micro_bsz tokens of a pack.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from evocore.data.batch import MicroBatch
from evocore.data.documents import Documents, Fragment
from evocore.data.permutation import Permutation
from evocore.errors import UserError
from evocore.seeds import derive_seed

_TOKENS_AT_ONCE = 1 << 15  # of which text and arrays fit the cache


class Packing(ABC):
    """Numbered packs, each one micro-batch of ``packed_length`` tokens.

    Args:
        seed: order of the documents; None for that of the files.
        keep_tail: make a last pack of what is left, filled up with tokens 0 without target; else it is dropped.
        vocab_size: ids are checked against it if given.
    """

    _kind: int  # sets the fingerprints of the ways of packing apart

    def __init__(
        self,
        documents: Documents,
        *,
        seq_len: int,
        micro_bsz: int,
        seed: int | None,
        keep_tail: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        self._documents = OrderedDocuments(documents, seed, vocab_size)
        self._seq_len, self._rows, self._packed_length = seq_len, micro_bsz, seq_len * micro_bsz
        amount, per_pack = self._extent()
        self._count = -(-amount // per_pack) if keep_tail else amount // per_pack

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> int:
        """31 bits that differ if the packs do: a resumed run compares them."""
        return self._documents.fingerprint(self._kind, self._seq_len, self._packed_length)

    @abstractmethod
    def _extent(self) -> tuple[int, int]:
        """How much there is to pack, and how much of it fills a pack: tokens, or documents."""

    @abstractmethod
    def _read(self, numbers: Sequence[int]) -> list[MicroBatch]: ...

    @abstractmethod
    def filler(self) -> MicroBatch:
        """A micro-batch of the usual shape without any target."""

    def read(self, numbers: Sequence[int]) -> list[MicroBatch]:
        """The packs of these numbers. A few at a time cost less than one by one.

        Raises:
            UserError: for a malformed line or an id beyond the vocabulary.
        """
        together = max(1, _TOKENS_AT_ONCE // self._packed_length)
        groups = [numbers[start : start + together] for start in range(0, len(numbers), together)]
        return [batch for group in groups for batch in self._read(group)]

    def __getitem__(self, number: int) -> MicroBatch:
        return self.read([number])[0]


class OrderedDocuments:
    """Documents in the order of packing; ``seed`` None keeps the order of the files."""

    def __init__(self, documents: Documents, seed: int | None, vocab_size: int | None) -> None:
        self.documents = documents
        self._vocab_size = vocab_size
        count = len(documents.lengths)
        self.order = np.arange(count) if seed is None else Permutation(count, derive_seed(seed, 1)).all()
        self.lengths = documents.lengths[self.order]

    def read(self, fragments: list[Fragment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids, targets = self.documents.read(fragments)
        if self._vocab_size is not None and len(ids) and ids.max() >= self._vocab_size:
            place = int(ids.argmax())
            ends = np.cumsum([stop - start for _, start, stop in fragments])
            document = fragments[int(np.searchsorted(ends, place, side="right"))].document
            raise UserError(
                f"{self.documents.describe(document)}: token id {ids[place]}, model.vocab_size is {self._vocab_size}",
                f"ids below {self._vocab_size}",
                "set model.vocab_size to that of the tokenizer, or tokenise with a smaller one; "
                "`evocore data inspect` shows the largest id of each file",
            )
        return ids, targets

    def types(self, fragments: list[Fragment]) -> NDArray[np.int64] | None:
        """Type of each token of the fragments."""
        if not self.documents.type_names:
            return None
        types = np.empty(total(fragments), np.int64)
        position = 0
        for document, start, stop in fragments:
            end = position + stop - start
            types[position:end] = self.documents.type_of(document)
            position = end
        return types

    def fingerprint(self, *shape: int) -> int:
        lengths = zlib.crc32(np.ascontiguousarray(self.lengths, np.int32).tobytes())
        return derive_seed(lengths, *shape) >> 33


def total(fragments: list[Fragment]) -> int:
    """Tokens of all fragments."""
    return sum([stop - start for _, start, stop in fragments])


def cuts(start: int, stop: int, length: int) -> list[int]:
    """Ends of spans of ``length`` (the last may be shorter) that cover ``start`` to ``stop``."""
    return [*range(start + length, stop, length), stop] if stop > start else []


def make_micro_batch(
    ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    ends: list[int],
    types: NDArray[np.int64] | None,
    type_names: tuple[str, ...],
) -> MicroBatch:
    """Wrap arrays of T elements, whose spans end at ``ends``, without copying them."""
    ramp, positions = np.arange(len(ids)), np.empty(len(ids), np.int64)
    for start, end in pairwise([0, *ends]):
        positions[start:end] = ramp[: end - start]
    return MicroBatch(
        tokens_T=torch.from_numpy(ids),
        labels_T=torch.from_numpy(labels),
        positions_T=torch.from_numpy(positions),
        cu_seqlens=(0, *ends),
        types_T=None if types is None else torch.from_numpy(types),
        type_names=type_names,
    )
