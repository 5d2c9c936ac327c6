"""What reading another checkpoint comes down to: its tensors' shapes, and rectangles of their values.

A tensor is seen as the matrix that ``evocore.nn.weight_map`` sees: its last dimension is the columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorFacts:
    """Of a tensor at rest.

    Attributes:
        dtype: by the safetensors format's name.
    """

    dtype: str
    shape: tuple[int, ...]


class Source(Protocol):
    """A checkpoint that is open for reading."""

    @property
    def name(self) -> str:
        """What to call it in an error."""
        ...

    @property
    def tensors(self) -> Mapping[str, TensorFacts]:
        """What it holds."""
        ...

    @property
    def bytes_read(self) -> int:
        """Of values, so far."""
        ...

    def read(self, name: str, rows: range, columns: range) -> Tensor:
        """A rectangle of a tensor, in the dtype that it has: ``[len(rows), len(columns)]`` on the CPU.

        It may lie in a mapped file: to be read and not changed.
        """
        ...


@dataclass(frozen=True)
class Slab:
    """A rectangle of a tensor that lies in one place, and how to read a rectangle of it.

    Attributes:
        rows, columns: of the whole tensor, both without gaps.
        read: called with rows and columns of the slab itself.
    """

    rows: range
    columns: range
    read: Callable[[range, range], Tensor]


def read_slabs(slabs: Sequence[Slab], rows: range, columns: range, dtype: torch.dtype) -> Tensor:
    """A rectangle of a tensor that lies in several places."""
    found = None
    for slab in slabs:
        which, across = _inside(rows, slab.rows), _inside(columns, slab.columns)
        if which and across:
            mine, yours = rows[which.start : which.stop], columns[across.start : across.stop]
            part = slab.read(_minus(mine, slab.rows.start), _minus(yours, slab.columns.start))
            if len(which) == len(rows) and len(across) == len(columns):
                return part
            found = torch.empty(len(rows), len(columns), dtype=dtype) if found is None else found
            found[which.start : which.stop, across.start : across.stop] = part
    return torch.empty(len(rows), len(columns), dtype=dtype) if found is None else found


def _inside(wanted: range, there: range) -> range:
    """Which of the wanted, by their number, are in a range without gaps."""
    first = max(0, -(-(there.start - wanted.start) // wanted.step))
    return range(first, max(first, min(len(wanted), -(-(there.stop - wanted.start) // wanted.step))))


def _minus(rows: range, start: int) -> range:
    return range(rows.start - start, rows.stop - start, rows.step)
