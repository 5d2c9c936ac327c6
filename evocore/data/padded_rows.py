"""One document per row, as InternEvo's unpacked data sets have it: simple, and wasteful for short documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evocore.data.batch import MicroBatch
from evocore.data.documents import IGNORE_INDEX, Fragment
from evocore.data.packing import Packing, cuts, make_micro_batch


class PaddedRows(Packing):
    """``use_packed_dataset=False``: ``micro_bsz`` rows of ``seq_len`` tokens with one document each.

    Longer documents are cut (the last label is the true next token), shorter ones filled with tokens 0 and labels
    -100; the padding belongs to the span of its row.
    """

    _kind = 3

    def _extent(self) -> tuple[int, int]:
        return len(self._documents.lengths), self._rows

    def filler(self) -> MicroBatch:
        return self._rows_of([])

    def _read(self, numbers: Sequence[int]) -> list[MicroBatch]:
        rows = [slice(number * self._rows, (number + 1) * self._rows) for number in numbers]
        return [self._rows_of(self._documents.order[places].tolist()) for places in rows]

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
        ends = cuts(0, tokens.size, self._seq_len)
        return make_micro_batch(tokens.ravel(), labels.ravel(), ends, types, self._documents.documents.type_names)
