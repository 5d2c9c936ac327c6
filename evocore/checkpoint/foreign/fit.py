"""Whether another house's checkpoint is one of the model that is to be filled; if not, in what they differ."""

from __future__ import annotations

from collections.abc import Iterator

from evocore.checkpoint.foreign.source import Source
from evocore.errors import UserError
from evocore.nn.weight_map import WeightMatch

FLOATING = ("F16", "BF16", "F32", "F64")
SHOWN = 5
"""Differences that an error spells out."""


def require_fit(match: WeightMatch, source: Source) -> None:
    """Compare names, shapes and dtypes.

    Raises:
        UserError: they differ; the first five differences are named.
    """
    found = list(_differences(match, source))
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UserError(
            wrong=f"{source.name} does not fit the model: {'; '.join(found[:SHOWN])}{more}",
            expected="the tensors of a model of the same family and size, in float16, bfloat16, float32 or float64",
            fix="set model_type and the model block for this checkpoint, or name another; quantised checkpoints have "
            "to be dequantised first",
        )


def _differences(match: WeightMatch, source: Source) -> Iterator[str]:
    for name, shape in match.theirs.items():
        there = source.tensors.get(name) or source.tensors.get(match.stand_ins.get(name, ""))
        if there is None:
            yield f"{name} {list(shape)} is missing"
        elif there.shape != shape:
            yield f"{name} is {list(there.shape)} there, {list(shape)} in the model"
        elif there.dtype not in FLOATING:
            yield f"{name} is {there.dtype} there, not a floating-point type that can be trained"
    for name, there in source.tensors.items():
        if name not in match.theirs and not match.is_ignored(name):
            yield f"{name} {list(there.shape)} is not part of the model"
