"""Which rows of our parameters are which rows of somebody else's: one table for both directions.

A checkpoint of another house has other names, other fusions and another order of rows, and nothing else: every
element of theirs is one of ours. A ``WeightMap`` says so as rules about names and rows. Matched against the shapes of
a model it becomes ``Piece``s, rectangles of theirs and ours of one size, from which a rank can tell what to read for
the boxes that it holds, and a converter what to write, one block at a time.

Every tensor is seen as a matrix: its last dimension is the columns, all dimensions before it are the rows; a vector
has one column. Columns are never moved.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """``rows(ours)[ours_rows]`` is ``rows(theirs)[theirs_rows]``, all columns of both.

    Attributes:
        normalised: theirs are ours scaled to length one, row by row, in what is written; what is read stays as it is.
    """

    ours: str
    ours_rows: range
    theirs: str
    theirs_rows: range
    normalised: bool = False


@dataclass(frozen=True)
class Part:
    """A piece of which the names are templates; rows that are left out are all."""

    theirs: str
    ours_rows: range | None = None
    theirs_rows: range | None = None
    normalised: bool = False


@dataclass(frozen=True)
class Rule:
    """What the parameters of one pattern of names consist of.

    Attributes:
        ours: a name with placeholders: ``{layer}`` stands for a number, ``{kind}`` for "weight" or "bias", the same
            one in every part.
        parts: number of rows of the parameter -> its parts.
    """

    ours: str
    parts: Callable[[int], Iterable[Part]]

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        text = re.escape(self.ours)
        for placeholder, expression in _PLACEHOLDERS.items():
            text = text.replace(re.escape(placeholder), expression)
        return re.compile(text)


_PLACEHOLDERS = {"{layer}": "(?P<layer>[0-9]+)", "{kind}": "(?P<kind>weight|bias)"}


@dataclass(frozen=True)
class Fused:
    """Several of their tensors that may also be stored as one.

    Attributes:
        name: of the one, with placeholders as in ``Rule``.
        runs: whose rows it holds, name and number, in order; rows of one name belong together in their order.
        written: whether what is written has the one.
    """

    name: str
    runs: tuple[tuple[str, int], ...]
    written: bool = False


@dataclass(frozen=True)
class WeightMap:
    """A family's table between our parameters and theirs.

    Attributes:
        rules: one of them matches each of our parameters; a rule that matches none is of an option that is off.
        ignored: shell patterns of their tensors that hold nothing of ours (``*.rotary_emb.inv_freq``).
        stand_ins: their tensor -> theirs that is read in its place if it is absent (a head that they tie).
        fused: which of theirs some of their checkpoints hold as one tensor.
    """

    rules: tuple[Rule, ...]
    ignored: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Fused, ...] = ()

    def match(self, ours: Mapping[str, Shape]) -> WeightMatch:
        """The pieces of a model.

        Args:
            ours: shapes of the whole model's parameters and buffers, by name.

        Raises:
            ValueError: the map does not cover every row of a parameter, or of one of theirs, exactly once.
        """
        pieces = tuple(piece for name, shape in ours.items() for piece in self._pieces(name, shape))
        theirs: dict[str, Shape] = {}
        rows: dict[str, int] = {}
        for piece in pieces:
            shape = ours[piece.ours]
            rows[piece.theirs] = rows.get(piece.theirs, 0) + len(piece.theirs_rows)
            columns = theirs.setdefault(piece.theirs, shape[-1:] if len(shape) > 1 else ())
            if columns != (shape[-1:] if len(shape) > 1 else ()):
                raise ValueError(f"{piece.theirs} has rows of several widths, those of {piece.ours} among them")
        theirs = {name: (rows[name], *columns) for name, columns in theirs.items()}
        _check_cover({name: prod(_matrix_shape(shape)[:1]) for name, shape in ours.items()}, pieces, "ours")
        _check_cover(rows, pieces, "theirs")
        return WeightMatch(dict(ours), theirs, pieces, self.ignored, self.stand_ins)

    def _pieces(self, name: str, shape: Shape) -> Iterator[Piece]:
        rows = _matrix_shape(shape)[0]
        found = [(rule, match) for rule in self.rules if (match := rule.pattern.fullmatch(name))]
        if len(found) != 1:
            raise ValueError(f"{len(found) or 'no'} rules of the weight map match {name}; exactly one should")
        rule, match = found[0]
        for part in rule.parts(rows):
            theirs = part.theirs
            for placeholder, value in match.groupdict().items():
                theirs = theirs.replace(f"{{{placeholder}}}", value)
            mine = range(rows) if part.ours_rows is None else part.ours_rows
            yours = range(len(mine)) if part.theirs_rows is None else part.theirs_rows
            if len(mine) != len(yours):
                raise ValueError(f"{name}{[mine]} and {theirs}{[yours]} differ in their number of rows")
            yield Piece(name, mine, theirs, yours, part.normalised)


@dataclass(frozen=True)
class WeightMatch:
    """A map, matched against one model.

    Attributes:
        ours: shapes of our parameters and buffers.
        theirs: shapes of the tensors of theirs that hold them.
        pieces: what is what; every element of ours and of theirs is in one of them.
        ignored, stand_ins: as in ``WeightMap``.
    """

    ours: Mapping[str, Shape]
    theirs: Mapping[str, Shape]
    pieces: tuple[Piece, ...]
    ignored: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def of_ours(self) -> Mapping[str, Rows]:
        """The pieces of each of our parameters."""
        return _by_name(self.pieces, "ours")

    @cached_property
    def of_theirs(self) -> Mapping[str, Rows]:
        """The pieces of each of their tensors."""
        return _by_name(self.pieces, "theirs")

    def is_ignored(self, theirs: str) -> bool:
        """Whether a tensor that they have and we do not may be left unread."""
        return any(fnmatchcase(theirs, pattern) for pattern in self.ignored)


@dataclass(frozen=True)
class Rows:
    """The pieces of one tensor, found by the rows that they hold of it.

    Args:
        side: "ours" or "theirs", whichever the tensor is.
    """

    side: str
    pieces: tuple[Piece, ...]

    def within(self, start: int, stop: int) -> Iterator[tuple[Piece, range]]:
        """The pieces with rows from ``start`` to ``stop``, and which of each piece's rows these are."""
        for index in range(bisect_right(self._stops, start), len(self.pieces)):
            rows = self._rows[index]
            if rows.start >= stop:
                return
            first = max(0, -(-(start - rows.start) // rows.step))
            last = min(len(rows), -(-(stop - rows.start) // rows.step))
            if first < last:
                yield self.pieces[index], range(first, last)

    @cached_property
    def _rows(self) -> list[range]:
        return [getattr(piece, f"{self.side}_rows") for piece in self.pieces]

    @cached_property
    def _stops(self) -> list[int]:
        """The highest row of each piece and all before it, plus one."""
        return list(accumulate((rows[-1] + 1 for rows in self._rows), max))


def matrix(tensor: Tensor) -> Tensor:
    """A contiguous tensor as the matrix that a map sees."""
    return tensor.view(_matrix_shape(tuple(tensor.shape)))


def take_rows(rows: range) -> slice:
    """What indexes a tensor with ``rows``."""
    return slice(rows.start, rows.stop, rows.step)


def normalised_rows(rows_RD: Tensor) -> Tensor:
    """Rows scaled to length one in float32, in the dtype that they have."""
    return torch.nn.functional.normalize(rows_RD.float(), dim=1).to(rows_RD.dtype)


def to_ours(match: WeightMatch, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our parameters from all of their tensors, in memory; dtypes stay."""
    found = {}
    for name, shape in match.ours.items():
        pieces = match.of_ours[name].pieces
        found[name] = theirs[pieces[0].theirs].new_empty(shape)
        for piece in pieces:
            matrix(found[name])[take_rows(piece.ours_rows)] = matrix(theirs[piece.theirs])[
                take_rows(piece.theirs_rows)
            ]
    return found


def to_theirs(match: WeightMatch, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors from all of our parameters, in memory; dtypes stay."""
    found = {}
    for name, shape in match.theirs.items():
        pieces = match.of_theirs[name].pieces
        found[name] = ours[pieces[0].ours].new_empty(shape)
        for piece in pieces:
            rows = matrix(ours[piece.ours])[take_rows(piece.ours_rows)]
            matrix(found[name])[take_rows(piece.theirs_rows)] = normalised_rows(rows) if piece.normalised else rows
    return found


def _matrix_shape(shape: Shape) -> tuple[int, int]:
    return (prod(shape[:-1]), shape[-1]) if len(shape) > 1 else (prod(shape), 1)


def _by_name(pieces: Iterable[Piece], side: str) -> dict[str, Rows]:
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        found.setdefault(getattr(piece, side), []).append(piece)
    for same_name in found.values():
        same_name.sort(key=lambda piece: getattr(piece, f"{side}_rows").start)
    return {name: Rows(side, tuple(same_name)) for name, same_name in found.items()}


def _check_cover(rows: Mapping[str, int], pieces: Iterable[Piece], side: str) -> None:
    seen = {name: torch.zeros(count, dtype=torch.int32) for name, count in rows.items()}
    for piece in pieces:
        name, held = getattr(piece, side), getattr(piece, f"{side}_rows")
        if held.start < 0 or held[-1] >= rows[name]:
            raise ValueError(f"{name} has {rows[name]} rows; the weight map names {held}")
        seen[name][take_rows(held)] += 1
    for name, times in seen.items():
        if len(wrong := (times != 1).nonzero()):
            row = int(wrong[0])
            raise ValueError(f"row {row} of {name} is in {int(times[row])} pieces of the weight map, not in one")
