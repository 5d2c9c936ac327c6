"""Writes tokenised datasets, in the form that :mod:`evocore.data.records` reads fastest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple

import numpy as np

from evocore.data.fixed_width import HEAD, TAIL, spell
from evocore.data.records import meta_path

_PART_BYTES = 1 << 30  # a file that reaches this is closed, so that datasets can be copied and read in parts


class Record(NamedTuple):
    """One line of a ``.bin`` file and its number of tokens."""

    line: bytes
    tokens: int

    @classmethod
    def of(cls, tokens: Sequence[int], trained: Sequence[bool] | None = None, *, internevo: bool = False) -> Record:
        """Spell a document.

        Args:
            trained: whether each token is a target; if left out, all are but those with id 0, as in InternEvo's data.
            internevo: write what InternEvo writes, byte for byte: no fixed places and no mask, so that a token with
                id 0 is never a target.
        """
        if trained is None or (all(trained) and 0 not in tokens):
            inside = None if internevo else spell(tokens)
            line = b'{"tokens": %s}\n' % _list(tokens) if inside is None else HEAD + inside + TAIL
            return cls(line, len(tokens))
        if not internevo and any(on for token, on in zip(tokens, trained, strict=True) if token == 0):
            mask = _list(map(int, trained))
            return cls(b'{"tokens": %s, "loss_mask": %s}\n' % (_list(tokens), mask), len(tokens))
        signed = [token if on else -token for token, on in zip(tokens, trained, strict=True)]
        return cls(b'{"tokens": %s}\n' % _list(signed), len(tokens))


def _list(numbers: Iterable[int]) -> bytes:
    """As ``json.dumps`` writes it."""
    return b"[%s]" % ", ".join(map(str, numbers)).encode()


class RecordWriter:
    """Appends records to ``part-00000.bin``, ``part-00001.bin``, ... in ``folder``; each with its int64 index.

    Use it in ``with``: the last index is written at the end. ``samples`` and ``tokens`` count what was written.
    """

    def __init__(self, folder: Path, part_bytes: int = _PART_BYTES) -> None:
        self._folder, self._part_bytes = folder, part_bytes
        self._file: BinaryIO | None = None
        self._rows: list[tuple[int, int]] = []
        self._offset = self._parts = 0
        self.samples = self.tokens = 0

    def append(self, record: Record) -> None:
        if self._file is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path().open("wb")
        self._file.write(record.line)
        self._rows.append((self._offset, record.tokens))
        self._offset += len(record.line)
        self.samples += 1
        self.tokens += record.tokens
        if self._offset >= self._part_bytes:
            self._finish_part()

    def _path(self) -> Path:
        return self._folder / f"part-{self._parts:05}.bin"

    def _finish_part(self) -> None:
        if self._file is None:
            return
        self._file.close()
        with meta_path(self._path()).open("wb") as file:
            np.save(file, np.array(self._rows, np.int64), allow_pickle=False)
        self._file, self._rows, self._offset, self._parts = None, [], 0, self._parts + 1

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish_part()
