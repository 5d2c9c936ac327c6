"""Documents into packs: which tokens make up micro-batch ``i``, computed from cumulative lengths alone.

The documents, in an order fixed by the seed, form one long stream; pack ``i`` is its tokens ``[i*P, (i+1)*P)``. It is
found by bisection, so any rank can start anywhere at once.

Shapes: T = P = ``packed_length`` = seq_len * micro_bsz tokens of a pack.
"""

from __future__ import annotations

import zlib
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from evocore.data.batch import MicroBatch
from evocore.data.documents import IGNORE_INDEX, Documents, Fragment
from evocore.data.permutation import Permutation, derive_seed
from evocore.errors import UserError


class Packing(Protocol):
    """Numbered packs, each one micro-batch."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> MicroBatch: ...

    def filler(self) -> MicroBatch:
        """A micro-batch of the usual shape without any target."""
        ...

    def fingerprint(self) -> int:
        """31 bits that differ if the packs do: a resumed run compares them."""
        ...


class _OrderedDocuments:
    """Documents in the order of packing; ``seed`` None keeps the order of the files."""

    def __init__(self, documents: Documents, seed: int | None, vocab_size: int | None) -> None:
        self.documents = documents
        self._vocab_size = vocab_size
        count = len(documents.lengths)
        order = np.arange(count)
        if seed is not None:
            order = Permutation(count, derive_seed(seed, 1))(order)
        self.order = order.astype(np.uint32) if count < 2**32 else order
        self.lengths = documents.lengths[self.order]

    def document(self, place: int) -> int:
        return int(self.order[place])

    def read(self, fragments: list[Fragment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids, targets = self.documents.read(fragments)
        if self._vocab_size is not None and len(ids) and (largest := int(ids.max())) >= self._vocab_size:
            raise UserError(
                f"the data holds token id {largest}, model.vocab_size is {self._vocab_size}",
                f"ids below {self._vocab_size}",
                "set model.vocab_size to that of the tokenizer, or tokenise with a smaller one; "
                "`evocore data inspect` shows the largest id of each file",
            )
        return ids, targets

    def types(self, fragments: list[Fragment]) -> NDArray[np.int64] | None:
        """Type of each token of the fragments."""
        if not self.documents.type_names:
            return None
        types = np.empty(sum(stop - start for _, start, stop in fragments), np.int64)
        position = 0
        for document, start, stop in fragments:
            end = position + stop - start
            types[position:end] = self.documents.type_of(document)
            position = end
        return types

    def fingerprint(self, *shape: int) -> int:
        lengths = zlib.crc32(np.ascontiguousarray(self.lengths, np.int32).tobytes())
        return derive_seed(lengths, *shape) >> 33


class _StreamPacking:
    """What both ways of packing a stream share.

    Args:
        seed: order of the documents; None for that of the files.
        keep_tail: make a last pack of what is left, filled up with tokens 0 without target; else it is dropped.
        vocab_size: ids are checked against it if given.
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
        self._documents = _OrderedDocuments(documents, seed, vocab_size)
        self._seq_len, self._packed_length = seq_len, seq_len * micro_bsz
        self._ends = np.cumsum(self._documents.lengths, dtype=np.int64)
        whole, rest = divmod(int(self._ends[-1]), self._packed_length)
        self._count = whole + (1 if keep_tail and rest else 0)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> int:
        return self._documents.fingerprint(1, self._seq_len, self._packed_length)

    def filler(self) -> MicroBatch:
        return self._assemble([], np.empty(0, np.int64), np.empty(0, np.int64), [])

    def _fragments(self, start: int, stop: int) -> list[Fragment]:
        """The parts of documents that tokens ``start`` to ``stop`` of the stream are made of."""
        stop = min(stop, int(self._ends[-1]))
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        places = slice(first, last + 1)
        documents, lengths = self._documents.order[places].tolist(), self._documents.lengths[places].tolist()
        fragments = [Fragment(document, 0, length) for document, length in zip(documents, lengths, strict=True)]
        end = int(self._ends[last])
        fragments[-1] = fragments[-1]._replace(stop=lengths[-1] - (end - stop))
        begin = int(self._ends[first]) - lengths[0]
        fragments[0] = fragments[0]._replace(start=start - begin)
        return fragments

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

    def __getitem__(self, number: int) -> MicroBatch:
        fragments = self._fragments(number * self._packed_length, (number + 1) * self._packed_length)
        last = fragments[-1]
        length = int(self._documents.documents.lengths[last.document])
        # One token more than is packed, to be the last label, where the document goes on.
        ids, targets = self._documents.read([*fragments[:-1], last._replace(stop=min(last.stop + 1, length))])
        used = sum(stop - start for _, start, stop in fragments)
        labels = np.full(used, IGNORE_INDEX, np.int64)
        labels[: len(targets) - 1] = targets[1 : used + 1]
        ends: list[int] = []
        position = 0
        for fragment in fragments:
            end = position + fragment.stop - fragment.start
            ends += _cuts(position, end, self._seq_len)
            position = end
            if fragment is not last:
                labels[end - 1] = IGNORE_INDEX
        return self._assemble(fragments, ids[:used], labels, ends)


class WindowPacking(_StreamPacking):
    """``pack_sample_into_one=True``: spans of exactly ``seq_len`` tokens; attention and labels cross documents.

    The label of a token is the next one of the stream; the last token of the stream has none.
    """

    def __getitem__(self, number: int) -> MicroBatch:
        start, stop = number * self._packed_length, (number + 1) * self._packed_length
        ids, targets = self._documents.read(self._fragments(start, stop + 1))
        fragments = self._fragments(start, stop)
        used = sum(stop - start for _, start, stop in fragments)
        labels = np.full(used, IGNORE_INDEX, np.int64)
        labels[: len(targets) - 1] = targets[1 : used + 1]
        return self._assemble(fragments, ids[:used], labels, _cuts(0, used, self._seq_len))


class PaddedRows:
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
        self._documents = _OrderedDocuments(documents, seed, vocab_size)
        self._seq_len, self._rows = seq_len, micro_bsz
        whole, rest = divmod(len(self._documents.lengths), micro_bsz)
        self._count = whole + (1 if keep_tail and rest else 0)

    def __len__(self) -> int:
        return self._count

    def fingerprint(self) -> int:
        return self._documents.fingerprint(2, self._seq_len, self._rows)

    def filler(self) -> MicroBatch:
        return self._rows_of([])

    def __getitem__(self, number: int) -> MicroBatch:
        stop = min((number + 1) * self._rows, len(self._documents.lengths))
        return self._rows_of([self._documents.document(place) for place in range(number * self._rows, stop)])

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
    positions = np.arange(len(ids))
    for start, end in pairwise(ends):
        positions[start:end] = positions[: end - start]
    return MicroBatch(
        tokens_T=torch.from_numpy(ids),
        labels_T=torch.from_numpy(labels),
        positions_T=torch.from_numpy(positions),
        cu_seqlens=(0, *ends),
        types_T=None if types is None else torch.from_numpy(types),
        type_names=type_names,
    )
