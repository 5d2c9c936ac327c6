"""Documents into packs: which tokens make up micro-batch ``i``, computed from cumulative lengths alone.

The documents, in an order fixed by the seed, form one long stream; pack ``i`` is its tokens ``[i*P, (i+1)*P)``. It is
found by bisection, so any rank can start anywhere at once.

Shapes: T = P = ``packed_length`` = seq_len * micro_bsz tokens of a pack.
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
from evocore.data.documents import IGNORE_INDEX, Documents, Fragment
from evocore.data.permutation import Permutation, derive_seed
from evocore.errors import UserError

_TOKENS_AT_ONCE = 1 << 15  # of which text and arrays fit the cache


class Packing(ABC):
    """Numbered packs, each one micro-batch of ``packed_length`` tokens."""

    def __init__(self, packed_length: int) -> None:
        self._packed_length = packed_length

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _read(self, numbers: Sequence[int]) -> list[MicroBatch]: ...

    @abstractmethod
    def filler(self) -> MicroBatch:
        """A micro-batch of the usual shape without any target."""

    @abstractmethod
    def fingerprint(self) -> int:
        """31 bits that differ if the packs do: a resumed run compares them."""

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


class _OrderedDocuments:
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
        types = np.empty(_total(fragments), np.int64)
        position = 0
        for document, start, stop in fragments:
            end = position + stop - start
            types[position:end] = self.documents.type_of(document)
            position = end
        return types

    def fingerprint(self, *shape: int) -> int:
        lengths = zlib.crc32(np.ascontiguousarray(self.lengths, np.int32).tobytes())
        return derive_seed(lengths, *shape) >> 33


class _StreamPacking(Packing):
    """What both ways of packing a stream share.

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
        super().__init__(seq_len * micro_bsz)
        self._documents = _OrderedDocuments(documents, seed, vocab_size)
        self._seq_len = seq_len
        self._ends = np.cumsum(self._documents.lengths, dtype=np.int64)
        whole, rest = divmod(int(self._ends[-1]), self._packed_length)
        self._count = whole + (1 if keep_tail and rest else 0)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> int:
        return self._documents.fingerprint(self._kind, self._seq_len, self._packed_length)

    def filler(self) -> MicroBatch:
        return self._assemble([], np.empty(0, np.int64), np.empty(0, np.int64), [])

    def _fragments(self, start: int, stop: int) -> list[Fragment]:
        """The parts of documents that tokens ``start`` to ``stop`` of the stream are made of."""
        stop = min(stop, int(self._ends[-1]))
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        places = slice(first, last + 1)
        documents, lengths = self._documents.order[places].tolist(), self._documents.lengths[places].tolist()
        starts, stops = [0] * len(lengths), lengths
        starts[0] = lengths[0] - (int(self._ends[first]) - start)
        stops[-1] -= int(self._ends[last]) - stop
        return list(map(Fragment, documents, starts, stops))

    @abstractmethod
    def _with_next(self, number: int, fragments: list[Fragment]) -> list[Fragment]:
        """The fragments of a pack and the token behind them, if it is the label of the last one."""

    @abstractmethod
    def _ends_of_spans(self, fragments: list[Fragment], labels: NDArray[np.int64]) -> list[int]:
        """Where the attention spans of a pack end; masks the labels, which are the next tokens, between documents."""

    def _read(self, numbers: Sequence[int]) -> list[MicroBatch]:
        length = self._packed_length
        packs = [self._fragments(number * length, (number + 1) * length) for number in numbers]
        wanted = [self._with_next(number, pack) for number, pack in zip(numbers, packs, strict=True)]
        ids, targets = self._documents.read([fragment for pack in wanted for fragment in pack])
        following = np.full(len(ids), IGNORE_INDEX, np.int64)
        following[:-1] = targets[1:]
        batches = []
        position = 0
        for pack, read in zip(packs, wanted, strict=True):
            end, next_pack = position + _total(pack), position + _total(read)
            labels = following[position:end]
            if next_pack == end:
                labels[-1] = IGNORE_INDEX  # what follows is another pack
            ends = self._ends_of_spans(pack, labels)
            batches.append(self._assemble(pack, ids[position:end], labels, ends))
            position = next_pack
        return batches

    def _assemble(
        self, fragments: list[Fragment], ids: NDArray[np.int64], labels: NDArray[np.int64], ends: list[int]
    ) -> MicroBatch:
        """A micro-batch whose spans end at ``ends``; the rest of a last pack becomes spans of padding."""
        types = self._documents.types(fragments)
        if missing := self._packed_length - len(ids):
            ids = np.pad(ids, (0, missing))
            labels = np.pad(labels, (0, missing), constant_values=IGNORE_INDEX)
            types = None if types is None else np.pad(types, (0, missing))
            ends = ends + _cuts(self._packed_length - missing, self._packed_length, self._seq_len)
        return make_micro_batch(ids, labels, ends, types, self._documents.documents.type_names)


class DocumentPacking(_StreamPacking):
    """``pack_sample_into_one=False``: attention stays inside a document.

    A span is a fragment of one document in this pack, cut again after every ``seq_len`` tokens of it. The label of a
    token is the next one of its document, even across a cut; -100 at the document's end.
    """

    _kind = 1

    def _with_next(self, number: int, fragments: list[Fragment]) -> list[Fragment]:
        document, start, stop = fragments[-1]
        goes_on = stop < self._documents.documents.lengths[document]
        return [*fragments[:-1], Fragment(document, start, stop + 1)] if goes_on else fragments

    def _ends_of_spans(self, fragments: list[Fragment], labels: NDArray[np.int64]) -> list[int]:
        ends: list[int] = []
        position = 0
        for _, start, stop in fragments:
            if position:
                labels[position - 1] = IGNORE_INDEX  # here the last document ends
            ends += _cuts(position, position + stop - start, self._seq_len)
            position += stop - start
        return ends


class WindowPacking(_StreamPacking):
    """``pack_sample_into_one=True``: spans of exactly ``seq_len`` tokens; attention and labels cross documents.

    The label of a token is the next one of the stream; the last token of the stream has none.
    """

    _kind = 2

    def _with_next(self, number: int, fragments: list[Fragment]) -> list[Fragment]:
        return self._fragments(number * self._packed_length, (number + 1) * self._packed_length + 1)

    def _ends_of_spans(self, fragments: list[Fragment], labels: NDArray[np.int64]) -> list[int]:
        return _cuts(0, len(labels), self._seq_len)


class PaddedRows(Packing):
    """``use_packed_dataset=False``: ``micro_bsz`` rows of ``seq_len`` tokens with one document each.

    Longer documents are cut (the last label is the true next token), shorter ones filled with tokens 0 and labels
    -100; the padding belongs to the span of its row. Arguments as for the packed forms.
    """

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
        super().__init__(seq_len * micro_bsz)
        self._documents = _OrderedDocuments(documents, seed, vocab_size)
        self._seq_len, self._rows = seq_len, micro_bsz
        whole, rest = divmod(len(self._documents.lengths), micro_bsz)
        self._count = whole + (1 if keep_tail and rest else 0)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> int:
        return self._documents.fingerprint(3, self._seq_len, self._rows)

    def filler(self) -> MicroBatch:
        return self._rows_of([])

    def _read(self, numbers: Sequence[int]) -> list[MicroBatch]:
        return [self._rows_of(self._documents_of(number)) for number in numbers]

    def _documents_of(self, number: int) -> list[int]:
        stop = min((number + 1) * self._rows, len(self._documents.lengths))
        return self._documents.order[number * self._rows : stop].tolist()

    def _rows_of(self, documents: list[int]) -> MicroBatch:
        lengths = [int(self._documents.documents.lengths[document]) for document in documents]
        read = [min(length, self._seq_len + 1) for length in lengths]  # one more than is kept, for the last label
        fragments = [Fragment(document, 0, stop) for document, stop in zip(documents, read, strict=True)]
        ids, targets = self._documents.read(fragments)
        tokens = np.zeros((self._rows, self._seq_len), np.int64)
        labels = np.full((self._rows, self._seq_len), IGNORE_INDEX, np.int64)
        position = 0
        for row, count in enumerate(read):
            kept = min(count, self._seq_len)
            tokens[row, :kept] = ids[position : position + kept]
            labels[row, : count - 1] = targets[position + 1 : position + count]
            position += count
        types = self._documents.types([Fragment(document, 0, self._seq_len) for document in documents])
        if types is not None:
            types = np.pad(types, (0, tokens.size - len(types)))
        ends = _cuts(0, tokens.size, self._seq_len)
        return make_micro_batch(tokens.ravel(), labels.ravel(), ends, types, self._documents.documents.type_names)


def _total(fragments: list[Fragment]) -> int:
    """Tokens of all fragments."""
    return sum([stop - start for _, start, stop in fragments])


def _cuts(start: int, stop: int, length: int) -> list[int]:
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
