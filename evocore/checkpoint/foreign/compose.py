"""The other way round: rows of their tensors, made of ours."""

from __future__ import annotations

import torch
from torch import Tensor

from evocore.checkpoint.foreign.source import Source
from evocore.errors import UserError
from evocore.nn.weight_map import WeightMatch, normalised_rows, take_rows


def compose(match: WeightMatch, source: Source, name: str, rows: range, columns: range, dtype: torch.dtype) -> Tensor:
    """A rectangle of one of their tensors, without gaps.

    Args:
        source: our parameters and buffers, by the model's names.

    Raises:
        UserError: a value does not fit the dtype.
    """
    found = None
    for piece, which in match.of_theirs[name].within(rows.start, rows.stop):
        yours, mine = piece.theirs_rows[which.start : which.stop], piece.ours_rows[which.start : which.stop]
        if piece.normalised:  # by the length of whole rows
            whole = source.read(piece.ours, mine, range(match.theirs[name][-1]))
            part = normalised_rows(whole)[:, columns.start : columns.stop]
        else:
            part = source.read(piece.ours, mine, columns)
        if yours == rows:
            found = part
            break
        found = torch.empty(len(rows), len(columns), dtype=part.dtype) if found is None else found
        found[take_rows(range(yours.start - rows.start, yours.stop - rows.start, yours.step))] = part
    assert found is not None, name
    if dtype == torch.float16 and found.dtype != dtype and bool((found.abs() > torch.finfo(dtype).max).any()):
        raise UserError(
            f"{name} has values up to {float(found.abs().max()):.3g}, beyond those of float16",
            f"values up to {torch.finfo(dtype).max:.0f}",
            "--dtype bfloat16 or --dtype float32",
        )
    return found.to(dtype)
