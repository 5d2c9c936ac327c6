"""Tokenised datasets on disk: which files there are, what type each has, and their documents under one numbering."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evocore.data.documents import Fragment
from evocore.data.records import TokenizedFile, load_meta, read_fragments
from evocore.errors import UserError

INTERNEVO_TYPES = ("cn", "en", "code", "ja", "ar", "kaoshi")
_TYPE_FOLDER = re.compile(rf"[z_]*({'|'.join(INTERNEVO_TYPES)})")
_OPEN_FILES = 256  # mapped at a time: a process may usually hold 1024 descriptors


def is_type(folder: str) -> bool:
    """Whether InternEvo takes the name of a folder for a dataset type."""
    return _TYPE_FOLDER.fullmatch(folder) is not None


def find_bins(folder: Path) -> list[Path]:
    """All ``.bin`` files below ``folder`` in sorted order; links to folders are followed once each."""
    found, seen = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        found += [Path(root, name) for name in names if name.endswith(".bin")]
    return sorted(found)


def require_bins(folder: Path, key: str) -> list[Path]:
    """As :func:`find_bins`, for the folder that the config key ``key`` names.

    Raises:
        UserError: if the folder is missing or holds no ``.bin`` file.
    """
    if not folder.is_dir():
        raise UserError(
            f"{key}: the folder {folder} does not exist",
            "a folder with tokenised .bin files, or None for random data",
            "mend the path, or make the dataset with `evocore data tokenize SOURCES --out FOLDER`",
        )
    if not (bins := find_bins(folder)):
        raise UserError(
            f"{key}: there is no .bin file below {folder}",
            "a folder with tokenised .bin files",
            "make them with `evocore data tokenize SOURCES --out FOLDER`",
        )
    return bins


def type_of(path: Path, root: Path) -> str:
    """The dataset type of a file: a folder named after an InternEvo type (``en``, ``z_code``, ...) wherever it is
    below ``root``, else the first folder below ``root``, else "default"."""
    folders = path.relative_to(root).parts[:-1]
    for folder in folders:
        if match := _TYPE_FOLDER.fullmatch(folder):
            return match[1]
    return folders[0] if folders else "default"


@dataclass(frozen=True)
class LengthFilter:
    """Documents with fewer tokens are dropped; ``by_type`` overrides ``minimum``. Empty ones always are."""

    minimum: int = 0
    by_type: Mapping[str, int] = field(default_factory=dict)

    def of(self, type_name: str) -> int:
        """The least number of tokens that a document of ``type_name`` must have, at least 1."""
        return max(1, self.by_type.get(type_name, self.minimum))


class TokenizedDocuments:
    """The documents of many ``.bin`` files, numbered in the order of the files.

    Only the lengths are kept in memory (4 bytes a document); files are mapped when they are read.

    Raises:
        UserError: if an index is bad, or no document is long enough.
    """

    def __init__(self, bins: Sequence[Path], root: Path, filter: LengthFilter | None = None) -> None:
        filter = filter or LengthFilter()
        types = [type_of(path, root) for path in bins]
        self.type_names = tuple(sorted(set(types)))
        self._paths = tuple(bins)
        self._file_types = [self.type_names.index(name) for name in types]
        self._rows: list[NDArray[np.int64] | None] = []  # the rows of a file that stay, None for all
        lengths = []
        for path, name in zip(bins, types, strict=True):
            _, counts = load_meta(path)
            kept = np.flatnonzero(counts >= filter.of(name))
            self._rows.append(None if len(kept) == len(counts) else kept)
            lengths.append(counts[kept].astype(np.int32))
        self._starts = [0, *accumulate(len(part) for part in lengths)]
        self.lengths: NDArray[np.integer] = np.concatenate(lengths)
        self._open: OrderedDict[int, TokenizedFile] = OrderedDict()
        if not len(self.lengths):
            raise UserError(
                f"no document in the {len(bins)} .bin files below {root} has enough tokens (data.min_length)",
                "at least one document",
                "lower data.min_length or data.min_length_dict, or look at the data with `evocore data inspect`",
            )

    def type_of(self, document: int) -> int:
        """Index into ``type_names``."""
        return self._file_types[bisect_right(self._starts, document) - 1]

    def read(self, fragments: Sequence[Fragment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """See :class:`evocore.data.documents.Documents`; raises a UserError for a malformed line."""
        parts = []
        for document, start, stop in fragments:
            number, row = self._place(document)
            parts.append((self._file(number), row, start, stop))
        return read_fragments(parts)

    def describe(self, document: int) -> str:
        """File and line of a document."""
        number, row = self._place(document)
        return f"{self._paths[number]}, line {row + 1}"

    def _place(self, document: int) -> tuple[int, int]:
        """Number of the file that holds a document, and its row there."""
        number = bisect_right(self._starts, document) - 1
        row, kept = document - self._starts[number], self._rows[number]
        return number, row if kept is None else int(kept[row])

    def _file(self, number: int) -> TokenizedFile:
        file = self._open.get(number)
        if file is None:
            file = self._open[number] = TokenizedFile(self._paths[number])
            if len(self._open) > _OPEN_FILES:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(number)
        return file
