"""Fills what a rank holds of a model from another checkpoint: only the rectangles behind its boxes are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import torch
from torch import Tensor

from evocore.checkpoint.boxes import Boxes
from evocore.checkpoint.foreign.source import Source
from evocore.nn.weight_map import Shape, WeightMatch, take_rows
from evocore.parallel.placement import Box

BLOCK_ELEMENTS = 1 << 20
"""At most so many elements are on their way at a time, unless one row has more."""


@torch.no_grad()
def fill(match: WeightMatch, source: Source, targets: Mapping[str, Tensor | Boxes]) -> None:
    """Copy the values of our parameters, by name, of which each target is the whole or some boxes.

    ``source`` is known to fit (``evocore.checkpoint.foreign.fit``). Targets are contiguous, of any floating dtype.
    """
    for name, target in targets.items():
        shape = match.ours[name]
        parts = target.parts if isinstance(target, Boxes) else {(0,) * len(shape): target}
        for offsets, part in parts.items():
            _fill_box(match, source, name, Box(tuple(offsets), tuple(part.shape)), part)


def _fill_box(match: WeightMatch, source: Source, name: str, box: Box, part: Tensor) -> None:
    columns = range(box.offsets[-1], box.offsets[-1] + box.sizes[-1]) if len(box.sizes) > 1 else range(1)
    rows_here, done = part.view(-1, len(columns)), 0
    for run in row_runs(match.ours[name], box):
        for block in blocks(run, len(columns)):
            fill_rows(match, source, name, block, columns, rows_here[done : done + len(block)])
            done += len(block)


def fill_rows(match: WeightMatch, source: Source, name: str, rows: range, columns: range, part: Tensor) -> None:
    """Copy some rows of one of our parameters, without gaps, into ``part``."""
    for piece, which in match.of_ours[name].within(rows.start, rows.stop):
        theirs = piece.theirs if piece.theirs in source.tensors else match.stand_ins[piece.theirs]
        mine, yours = piece.ours_rows[which.start : which.stop], piece.theirs_rows[which.start : which.stop]
        here = range(mine.start - rows.start, mine.stop - rows.start, mine.step)
        part[take_rows(here)] = source.read(theirs, yours, columns).to(part.device)


def blocks(rows: range, columns: int) -> Iterator[range]:
    """Rows in runs of at most ``BLOCK_ELEMENTS`` elements, at least one row each."""
    most = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(rows.start, rows.stop, most):
        yield range(start, min(rows.stop, start + most))


def row_runs(shape: Shape, box: Box) -> Iterator[range]:
    """The rows of a box in its tensor's matrix, in order, as few runs as there can be."""
    if len(shape) < 2:
        size = box.sizes[0] if shape else 1
        yield range(box.offsets[0], box.offsets[0] + size) if shape else range(1)
        return
    strides = [1]
    for size in reversed(shape[1:-1]):
        strides.insert(0, strides[0] * size)
    outer = [range(offset, offset + size) for offset, size in zip(box.offsets[:-2], box.sizes[:-2], strict=True)]
    run = range(0)
    for place in product(*outer):
        first = sum(index * stride for index, stride in zip(place, strides[:-1], strict=True)) + box.offsets[-2]
        if run and run.stop == first:
            run = range(run.start, first + box.sizes[-2])
            continue
        if run:
            yield run
        run = range(first, first + box.sizes[-2])
    if run:
        yield run
