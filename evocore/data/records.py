r"""The tokenised file format: reading one pair of ``.bin`` and ``.bin.meta``.

``.bin`` is JSON lines, ``{"tokens": [5, 17, ...]}``; ``.bin.meta`` is an ``.npy`` array of rows (byte offset of the
line, ..., number of tokens). InternEvo writes the rows as int32, which ends at 2 GiB; both widths are read, int64 is
written. A negative token -t is the id t without loss, hence id 0 is never a target. A line may instead carry
``"loss_mask": [0, 1, ...]`` (one per token, 1 means loss), which wins over signs and sets no id apart.

JSON is slow to parse, so most lines go round it. Those that evocore writes have their numbers at fixed places (see
:mod:`evocore.data.fixed_width`); of others in the plain spelling ``{"tokens": [...]}`` the numbers of many documents
pass through numpy's text scanner in one call. Every other spelling takes the exact path.
"""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from evocore.data.documents import IGNORE_INDEX
from evocore.data.fixed_width import HEAD, SEPARATOR, TAIL, WIDTH, parse
from evocore.errors import UserError

_HEADS = (b'{"tokens": [', HEAD, b'{"tokens":[')
_COMMA = ord(",")
_WINDOW = 1 << 16  # bytes searched at once for commas: fits the cache
_SENTINEL = -7  # parsed after the last number: missing if the scanner stopped early
_LARGEST_ID = 2**31 - 1


def meta_path(path: Path) -> Path:
    """Where the index of the ``.bin`` file ``path`` lies."""
    return path.with_name(path.name + ".meta")


def load_meta(path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Byte offsets and token counts of the documents in the ``.bin`` file ``path``, checked against its size.

    Raises:
        UserError: if the index is missing, malformed, or cannot belong to the file.
    """
    meta = meta_path(path)
    try:
        rows = np.load(meta, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(
            f"{path} has no index {meta.name}",
            "every .bin file has a .bin.meta beside it",
            "copy the missing file, or tokenise again with `evocore data tokenize`",
        ) from None
    except (ValueError, EOFError, OSError) as error:
        raise _bad_meta(meta, f"is not a readable .npy file ({error})") from None
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        found = f"{rows.dtype} of shape {rows.shape}" if isinstance(rows, np.ndarray) else "an archive"
        raise _bad_meta(meta, f"holds {found}")
    offsets, counts = rows[:, 0].astype(np.int64), rows[:, -1].astype(np.int64)
    size = path.stat().st_size
    wrong = (offsets < 0) | (counts < 0) | (offsets >= size)
    wrong[1:] |= offsets[1:] <= offsets[:-1]
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        narrow = "; int32 offsets overflow beyond 2 GiB" if rows.dtype.itemsize == 4 and size >= 2**31 else ""
        raise UserError(
            f"{meta} does not match {path.name} ({size} bytes): sample {row} has offset {offsets[row]} and "
            f"{counts[row]} tokens{narrow}",
            "ascending offsets inside the file and counts of 0 or more",
            "copy both files again (the .bin may be cut short), or tokenise again with `evocore data tokenize`",
        )
    return offsets, counts


def _bad_meta(meta: Path, found: str) -> UserError:
    return UserError(
        f"{meta} {found}",
        "an .npy array of integers of shape (N, 2): byte offset, token count",
        "copy the file again, or tokenise again with `evocore data tokenize`",
    )


class TokenizedFile:
    """One memory-mapped ``.bin`` file; reads the documents that are asked for and nothing else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offsets, self.counts = load_meta(path)
        with path.open("rb") as file:
            # An empty file cannot be mapped; load_meta has made sure that it has no documents then.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if len(self.offsets) else b""
        self._bytes = np.frombuffer(self._map, np.uint8)
        sizes = np.diff(self.offsets, append=len(self._map))
        self._may_be_fixed = sizes == len(HEAD) + WIDTH * self.counts - len(SEPARATOR) + len(TAIL)

    def fixed(self, row: int, start: int, stop: int) -> bytes | None:
        """The text of tokens ``start`` to ``stop`` (exclusive, at least one); None if they are not at fixed places.

        What stands before and behind them is checked here, what stands among them by ``fixed_width.parse``.
        """
        if not self._may_be_fixed[row]:
            return None
        offset = int(self.offsets[row])
        origin = offset + len(HEAD)
        first, last = origin + WIDTH * start, origin + WIDTH * stop - len(SEPARATOR)
        behind = TAIL if stop == self.counts[row] else SEPARATOR
        if self._map[offset:origin] != HEAD or self._map[last : last + len(behind)] != behind:
            return None
        if start and self._map[first - len(SEPARATOR) : first] != SEPARATOR:
            return None
        return self._map[first:last]

    def numbers(self, row: int, start: int, stop: int) -> bytes | None:
        """The text of tokens ``start`` to ``stop`` (exclusive, at least one); None if the line is not plain.

        The line is checked as far as it is read: its count is known to be right once its last token is.
        """
        offset = int(self.offsets[row])
        begin = self._map[offset : offset + len(HEAD)]
        head = next((head for head in _HEADS if begin.startswith(head)), None)
        if head is None:
            return None
        first = offset + len(head)
        last = self._map.find(b"]", first)
        # The first bracket has to close the line, or there is a further key, such as a loss mask.
        if last < 0 or self._map[last : last + 3] not in (b"]}\n", b"]}"):  # the latter at the end of the file
            return None
        if start:
            comma = self._comma(first, last, start)
            if comma < 0:
                return None
            first = comma + 1
        if stop < self.counts[row]:
            last = self._comma(first, last, stop - start)
            if last < 0:
                return None
        elif np.count_nonzero(self._bytes[first:last] == _COMMA) != stop - start - 1:
            return None
        return self._map[first:last]

    def _line_end(self, row: int) -> int:
        end = self._map.find(b"\n", int(self.offsets[row]))
        return len(self._map) if end < 0 else end

    def _comma(self, position: int, end: int, number: int) -> int:
        """Position of the ``number``-th comma (from 1) in ``position`` to ``end``; -1 if there are fewer."""
        while position < end:
            window = min(_WINDOW, 8 * number + 64, end - position)
            found = self._bytes[position : position + window] == _COMMA
            here = int(np.count_nonzero(found))
            if here >= number:
                return position + int(found.nonzero()[0][number - 1])
            number -= here
            position += window
        return -1

    def parse(self, row: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids and targets of one document through the JSON parser: exact, slow, and the source of all complaints.

        Raises:
            UserError: if the line is not a valid record; names file, line and byte offset.
        """
        offset, count = int(self.offsets[row]), int(self.counts[row])
        if offset and self._bytes[offset - 1] != ord("\n"):
            raise self._bad_line(row, "the offset in the .meta is not at the start of a line")
        end = self._line_end(row)
        try:
            record = json.loads(self._map[offset:end])
        except ValueError as error:
            cut = ", the file ends here: it is cut short" if end == len(self._map) else ""
            raise self._bad_line(row, f"not valid JSON ({error}){cut}") from None
        tokens = record.get("tokens") if isinstance(record, dict) else None
        if not _integers(tokens):
            raise self._bad_line(row, 'no list of integers "tokens"')
        if len(tokens) != count:
            raise self._bad_line(row, f"{len(tokens)} tokens, but the .meta says {count}")
        if any(abs(token) > _LARGEST_ID for token in tokens):
            raise self._bad_line(row, f"a token id of {max(tokens, key=abs)}")
        ids, targets = split_signs(np.array(tokens, np.int64))
        mask = record.get("loss_mask")
        if mask is not None:
            if not _integers(mask) or len(mask) != count or not set(mask) <= {0, 1}:
                raise self._bad_line(row, '"loss_mask" is not a list of 0 and 1, one for each token')
            targets = np.where(np.array(mask, bool), ids, IGNORE_INDEX)
        return ids, targets

    def _bad_line(self, row: int, problem: str) -> UserError:
        return UserError(
            f"{self.path}, line {row + 1} at byte {self.offsets[row]}: {problem}",
            '{"tokens": [integers]}, as many as the .bin.meta says',
            "copy .bin and .bin.meta again, or tokenise again with `evocore data tokenize`",
        )


def _integers(values: object) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int for value in values)  # a bool is no integer here


def scan_numbers(texts: list[bytes], count: int) -> NDArray[np.int64] | None:
    """All numbers in ``texts``, each separated by commas; None unless they are exactly ``count`` possible tokens.

    The scanner is laxer than JSON about a plus sign, leading zeros and spaces inside the list, in nothing else.
    """
    try:
        values = np.fromstring(b",".join([*texts, b"%d" % _SENTINEL]), np.int64, sep=",")
    except (ValueError, DeprecationWarning):  # numpy before 2.4 warns about what it cannot read and returns the rest
        return None
    if len(values) != count + 1 or values[-1] != _SENTINEL:
        return None
    if values.max() > _LARGEST_ID or values.min() < -_LARGEST_ID:
        return None
    return values[:-1]


def split_signs(signed: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and targets of signed tokens: a token that is not positive is no target."""
    if len(signed) == 0 or signed.min() > 0:
        return signed, signed
    return np.abs(signed), np.where(signed > 0, signed, IGNORE_INDEX)


def read_fragments(
    fragments: list[tuple[TokenizedFile, int, int, int]],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids and targets of fragments (file, row, start, stop), one after another.

    Raises:
        UserError: if a line that holds one of them is not a valid record.
    """
    count = sum([stop - start for _, _, start, stop in fragments])
    fixed = [file.fixed(row, start, stop) for file, row, start, stop in fragments]
    if None not in fixed:
        ids = parse([text for text in fixed if text is not None], count)
        if ids is not None:
            return split_signs(ids)
    texts = [file.numbers(row, start, stop) for file, row, start, stop in fragments]
    plain = [text for text in texts if text is not None]
    if len(plain) == len(texts):
        signed = scan_numbers(plain, count)
        if signed is not None:
            return split_signs(signed)
    parts = []
    for (file, row, start, stop), text in zip(fragments, texts, strict=True):
        signed = None if text is None else scan_numbers([text], stop - start)
        if signed is None:
            ids, targets = file.parse(row)
            parts.append((ids[start:stop], targets[start:stop]))
        else:
            parts.append(split_signs(signed))
    return np.concatenate([ids for ids, _ in parts]), np.concatenate([targets for _, targets in parts])
