"""Looks through a tokenised dataset and tells what is in it, and what is wrong with it, before a run finds out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evocore.data.documents import IGNORE_INDEX
from evocore.data.records import TokenizedFile, read_fragments
from evocore.data.tokenized import find_bins, type_of
from evocore.errors import UserError

_TOKENS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class FileReport:
    """What one ``.bin`` file holds; where nothing can be read, the numbers are 0.

    Attributes:
        type: dataset type that its folder gives it.
        samples, tokens: how many; the lengths are tokens per sample.
        largest_id: over all tokens.
        masked: share of the tokens that are no target.
        problems: one line each; empty for a good file.
        first: ids of the first sample.
    """

    path: Path
    type: str
    samples: int
    tokens: int
    min_length: int
    mean_length: float
    max_length: int
    largest_id: int
    masked: float
    problems: tuple[str, ...]
    first: tuple[int, ...] = ()


def inspect_folder(folder: Path, vocab_size: int | None = None) -> Iterator[FileReport]:
    """Read every token of every ``.bin`` file below ``folder``.

    Args:
        vocab_size: ids from this on are a problem.

    Raises:
        UserError: if there is no such file.
    """
    bins = find_bins(folder) if folder.is_dir() else []
    if not bins:
        raise UserError(
            f"there is no .bin file below {folder}",
            "a folder with tokenised .bin files",
            "mend the path, or make a dataset with `evocore data tokenize SOURCES --out FOLDER`",
        )
    for path in bins:
        yield _inspect(path, type_of(path, folder), vocab_size)


def _inspect(path: Path, kind: str, vocab_size: int | None) -> FileReport:
    try:
        file = TokenizedFile(path)
    except UserError as error:
        return FileReport(path, kind, 0, 0, 0, 0.0, 0, 0, 0.0, (error.wrong,))
    counts = file.counts
    samples, tokens = len(counts), int(counts.sum())
    if not samples:
        return FileReport(path, kind, 0, 0, 0, 0.0, 0, 0, 0.0, ("no samples",))
    largest = masked = 0
    first: tuple[int, ...] = ()
    problems = []
    try:
        for rows in _groups(counts):
            ids, targets = read_fragments([(file, row, 0, int(counts[row])) for row in rows])
            largest = max(largest, int(ids.max()))
            masked += int(np.count_nonzero(targets == IGNORE_INDEX))
            first = first or tuple(ids[: counts[rows[0]]].tolist())
    except UserError as error:
        problems.append(error.wrong)
    if vocab_size is not None and largest >= vocab_size:
        problems.append(f"token id {largest}, the vocabulary has {vocab_size}")
    if empty := int(np.count_nonzero(counts == 0)):
        problems.append(f"{empty} samples without tokens, which are never used")
    return FileReport(
        path,
        kind,
        samples,
        tokens,
        int(counts.min()),
        tokens / samples,
        int(counts.max()),
        largest,
        masked / max(tokens, 1),
        tuple(problems),
        first,
    )


def _groups(counts: np.ndarray) -> Iterator[list[int]]:
    """Rows with tokens, in runs of bounded size."""
    rows: list[int] = []
    tokens = 0
    for row, count in enumerate(counts.tolist()):
        if count:
            rows.append(row)
            tokens += count
        if tokens >= _TOKENS_AT_ONCE:
            yield rows
            rows, tokens = [], 0
    if rows:
        yield rows
