"""Puts the parts of a tensor together that ranks of InternEvo have saved: where each lies in the whole.

Nothing in a file says how its tensors were divided. Their shapes do: a part is shorter than the whole in one
dimension. A fused weight needs more: tensor ranks hold equal shares of each projection in it, weight ranks (isp)
equal slices of all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from evocore.nn.weight_map import Fused, Shape


@dataclass(frozen=True)
class Placed:
    """A tensor, or some rows of it, and where these lie in the whole matrix."""

    tensor: Tensor
    rows: range
    columns: range
    first: int = 0

    @property
    def part(self) -> Tensor:
        """The rows themselves."""
        return self.tensor.narrow(0, self.first, len(self.rows))


def join(parts: Sequence[Tensor], shape: Shape) -> list[Placed] | None:
    """The whole of ``shape`` from what the ranks hold, in their order; None if they do not make it up.

    Ranks beyond those that make it up hold the same again.
    """
    first = tuple(parts[0].shape)
    if len(first) != len(shape):
        return None
    if first == shape:
        return [_placed(parts[0], shape, 0, 0)]
    for dimension in range(len(shape)):
        found, done = [], 0
        for part in parts:
            if done == shape[dimension] or _without(part.shape, dimension) != _without(shape, dimension):
                break
            found.append(_placed(part, shape, dimension, done))
            done += part.shape[dimension]
        if done == shape[dimension]:
            return found
    return None


def unfuse(parts: Sequence[Sequence[Tensor]], fused: Fused, *, sliced: bool) -> dict[str, list[Placed]]:
    """What a fused weight holds of each projection.

    Args:
        parts: of each rank, its rows: one tensor or, if the rank saved them under several names, one after another.
        sliced: ranks have equal slices of all rows, not equal shares of each projection.

    Returns:
        Name of a projection, as in ``fused.runs`` -> its parts; incomplete if the ranks do not make it up.
    """
    total, held = sum(rows for _, rows in fused.runs), sum(len(part) for part in parts[0])
    found: dict[str, list[Placed]] = {name: [] for name, _ in fused.runs}
    if not held or total % held:
        return found
    ranks = total // held
    for rank, tensors in enumerate(parts[:ranks]):
        runs = _slice(fused, rank * held, (rank + 1) * held) if sliced else _share(fused, rank, ranks)
        at = 0
        for name, start, rows in runs:
            for tensor, first, count in _rows_of(tensors, at, rows):
                there = range(start, start + count)
                found[name].append(Placed(tensor, there, range(_columns(tensor)), first))
                start += count
            at += rows
    return found


def is_whole(parts: Sequence[Placed], shape: Shape) -> bool:
    """Whether parts of rows, which do not overlap, make up a tensor."""
    return (
        bool(parts)
        and sum(len(part.rows) for part in parts) == shape[0]
        and _columns(parts[0].tensor) == (shape[-1] if len(shape) > 1 else 1)
    )


def shares(fused: Fused, rank: int, ranks: int, *, sliced: bool) -> list[tuple[str, int, int]]:
    """Of a rank of so many, its rows of a fused weight in their order: name, first row there, number of rows."""
    total = sum(rows for _, rows in fused.runs)
    return _slice(fused, rank * total // ranks, (rank + 1) * total // ranks) if sliced else _share(fused, rank, ranks)


def _share(fused: Fused, rank: int, ranks: int) -> list[tuple[str, int, int]]:
    totals = _totals(fused)
    seen = dict.fromkeys(totals, 0)
    found = []
    for name, rows in fused.runs:
        start, stop = (edge * totals[name] // ranks for edge in (rank, rank + 1))
        first, last = max(start, seen[name]), min(stop, seen[name] + rows)
        if first < last:
            found.append((name, first, last - first))
        seen[name] += rows
    return found


def _slice(fused: Fused, start: int, stop: int) -> list[tuple[str, int, int]]:
    seen = dict.fromkeys(_totals(fused), 0)
    found, at = [], 0
    for name, rows in fused.runs:
        first, last = max(start, at), min(stop, at + rows)
        if first < last:
            found.append((name, seen[name] + first - at, last - first))
        seen[name] += rows
        at += rows
    return found


def _totals(fused: Fused) -> Mapping[str, int]:
    totals: dict[str, int] = {}
    for name, rows in fused.runs:
        totals[name] = totals.get(name, 0) + rows
    return totals


def _rows_of(tensors: Sequence[Tensor], start: int, rows: int) -> list[tuple[Tensor, int, int]]:
    found, at = [], 0
    for tensor in tensors:
        first, last = max(start, at), min(start + rows, at + len(tensor))
        if first < last:
            found.append((tensor, first - at, last - first))
        at += len(tensor)
    return found


def _placed(part: Tensor, shape: Shape, dimension: int, start: int) -> Placed:
    starts = [start if axis == dimension else 0 for axis in range(len(shape))]
    rows = range(starts[0], starts[0] + part.shape[0])
    return Placed(part, rows, range(starts[1], starts[1] + part.shape[1]) if len(shape) > 1 else range(1))


def _columns(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.dim() > 1 else 1


def _without(shape: Sequence[int], dimension: int) -> tuple[int, ...]:
    return (*shape[:dimension], *shape[dimension + 1 :])
