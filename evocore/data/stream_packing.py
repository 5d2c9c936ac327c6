"""Documents one after another, cut into packs wherever one is full.

The documents, in an order fixed by the seed, form one long stream; pack ``i`` is its tokens ``[i*P, (i+1)*P)``, with
P = ``packed_length``. It is found by bisection of cumulative lengths; nothing else is kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evocore.data.batch import MicroBatch
from evocore.data.documents import IGNORE_INDEX, Fragment
from evocore.data.packing import Packing, cuts, make_micro_batch, total


class _StreamPacking(Packing):
    """What both ways of packing a stream share."""

    def _extent(self) -> tuple[int, int]:
        self._ends = np.cumsum(self._documents.lengths, dtype=np.int64)
        return int(self._ends[-1]), self._packed_length

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
            end, next_pack = position + total(pack), position + total(read)
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
            ends = ends + cuts(self._packed_length - missing, self._packed_length, self._seq_len)
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
            ends += cuts(position, position + stop - start, self._seq_len)
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
        return cuts(0, len(labels), self._seq_len)
