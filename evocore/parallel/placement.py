"""Where the elements of a rank's part of a parameter lie in the whole parameter.

However a parameter is split - by rows, by columns, by heads of a fused projection, by a range of its elements over
the optimizer's shards, or by one after another of these - a rank holds a few boxes of it. A checkpoint, initial
weights and the count of bytes need to know no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor


@dataclass(frozen=True)
class Box:
    """A rectangular part of a tensor: one offset and one size for each dimension."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)

    def of(self, tensor: Tensor) -> Tensor:
        """The view of a whole tensor that the box describes."""
        for dimension, (offset, size) in enumerate(zip(self.offsets, self.sizes, strict=True)):
            tensor = tensor.narrow(dimension, offset, size)
        return tensor


@dataclass(frozen=True)
class Placement:
    """What a rank holds of a parameter.

    Attributes:
        shape: of the whole parameter.
        local_shape: of the rank's tensor. Its elements, row by row, are those of the boxes one after another, each
            row by row; what is left over at its end is padding.
        boxes: parts of the whole.
    """

    shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    boxes: tuple[Box, ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Placement:
        """Of a rank that holds everything."""
        return cls(tuple(shape), tuple(shape), (Box((0,) * len(shape), tuple(shape)),))

    @cached_property
    def numel(self) -> int:
        """Elements without padding."""
        return sum(box.numel for box in self.boxes)

    def rows(self, runs: Sequence[tuple[int, int]]) -> Placement:
        """Of one who keeps these runs ``(start, stop)`` of the whole parameter's rows, in this order."""
        assert self == self.whole(self.shape), self
        rest = self.shape[1:]
        boxes = tuple(Box((start, *(0 for _ in rest)), (stop - start, *rest)) for start, stop in runs)
        return Placement(self.shape, (sum(stop - start for start, stop in runs), *rest), boxes)

    def columns(self, start: int, stop: int) -> Placement:
        """Of one who keeps these columns of a whole matrix."""
        assert self == self.whole(self.shape) and len(self.shape) == 2, self
        rows = self.shape[0]
        return Placement(self.shape, (rows, stop - start), (Box((0, start), (rows, stop - start)),))

    def elements(self, start: int, stop: int) -> Placement:
        """Of one who keeps elements ``start`` to ``stop`` of this rank's tensor as a flat one of that many.

        ``stop`` may reach beyond the end: what is there is padding.
        """
        boxes: list[Box] = []
        begin = 0
        for box in self.boxes:
            first, last = max(start - begin, 0), min(stop - begin, box.numel)
            if first < last:
                boxes += _range_of(box, first, last)
            begin += box.numel
        return Placement(self.shape, (stop - start,), tuple(boxes))

    def take(self, whole: Tensor) -> Tensor:
        """The rank's tensor, cut from the whole; padding is 0."""
        if len(self.boxes) == 1 and self.boxes[0].sizes == self.local_shape:
            return self.boxes[0].of(whole)
        local = whole.new_zeros(math.prod(self.local_shape))
        for box, part in zip(self.boxes, self.parts(local), strict=True):
            part.copy_(box.of(whole))
        return local.view(self.local_shape)

    def parts(self, local: Tensor) -> list[Tensor]:
        """Views of the rank's contiguous tensor, one for each box, in the box's shape."""
        flat = local.reshape(-1)
        found, begin = [], 0
        for box in self.boxes:
            found.append(flat[begin : begin + box.numel].view(box.sizes))
            begin += box.numel
        return found


def even_range(total: int, parts: int, index: int) -> tuple[int, int]:
    """Part ``index`` of ``total`` elements in ``parts`` of one length, the smallest that covers all."""
    length = -(-total // parts)
    return index * length, (index + 1) * length


def _range_of(box: Box, start: int, stop: int) -> Iterator[Box]:
    """The boxes that make up a range of a box's elements, row by row: part of a row, whole rows, part of a row."""
    if len(box.sizes) == 1:
        yield Box((box.offsets[0] + start,), (stop - start,))
        return
    row = math.prod(box.sizes[1:])

    def inside(number: int, first: int, last: int) -> Iterator[Box]:
        for part in _range_of(Box(box.offsets[1:], box.sizes[1:]), first, last):
            yield Box((box.offsets[0] + number, *part.offsets), (1, *part.sizes))

    first, last = -(-start // row), stop // row
    if first > last:  # all inside one row
        yield from inside(last, start - last * row, stop - last * row)
        return
    if start < first * row:
        yield from inside(first - 1, start - (first - 1) * row, row)
    if first < last:
        yield Box((box.offsets[0] + first, *box.offsets[1:]), (last - first, *box.sizes[1:]))
    if last * row < stop:
        yield from inside(last, 0, stop - last * row)
