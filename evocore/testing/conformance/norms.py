"""Cases of ``rms_norm``, ``add_rms_norm`` and ``layer_norm``."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from evocore.ops.layer_norm import LayerNormRequest
from evocore.ops.rms_norm import AddRMSNormRequest, RMSNormRequest
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case, Example, Grid, Numbers, Recipe, wide_if, words

FLAGS = (False, True)
SHAPES = ((1, 1), (5, 16), (3, 37))
NARROWEST = 4
"""Of the drawn rows: gradients of narrower ones can be sums that cancel to nothing but rounding."""
LARGE = ((64, 4096), (33, 8192), (300, 5000))


def _rms_norm(
    dtype: torch.dtype,
    tokens: int,
    width: int,
    unit_offset: bool = False,
    fp32_weight: bool = False,
    *,
    zeros: bool = False,
    seed: int = 0,
) -> Example:
    numbers = Numbers(seed)
    x, weight = numbers(tokens, width), numbers(width)
    if zeros:
        x = torch.zeros_like(x)
    return Example(
        RMSNormRequest(dtype, width, unit_offset),
        (x.to(dtype), weight.to(wide_if(fp32_weight, dtype))),
        activations=1,
        options={"eps": 1e-5, "unit_offset": unit_offset},
    )


def _draw_rms_norm(choices: Choices) -> Recipe:
    return partial(
        _rms_norm,
        tokens=choices.integer(0, 6),
        width=choices.integer(NARROWEST, 70),
        unit_offset=choices.flag(),
        fp32_weight=choices.flag(),
        seed=choices.integer(0, 999),
    )


def _rms_norm_cases() -> list[Case]:
    op = "rms_norm"
    return [
        *(
            Case(
                op,
                words(f"{tokens}x{width}", unit_offset=offset, fp32_weight=fp32),
                partial(_rms_norm, tokens=tokens, width=width, unit_offset=offset, fp32_weight=fp32),
                mixed=fp32,
            )
            for (tokens, width), offset, fp32 in product(SHAPES, FLAGS, FLAGS)
        ),
        Case(op, "rows-of-zeros", partial(_rms_norm, tokens=3, width=16, zeros=True)),
        *(
            Case(
                op,
                words("empty", unit_offset=offset),
                partial(_rms_norm, tokens=0, width=8, unit_offset=offset),
                empty=True,
            )
            for offset in FLAGS
        ),
        *(
            Case(
                op,
                words(f"{tokens}x{width}", unit_offset=offset),
                partial(_rms_norm, tokens=tokens, width=width, unit_offset=offset),
                "large",
            )
            for (tokens, width), offset in product(LARGE, FLAGS)
        ),
    ]


def _add_rms_norm(
    dtype: torch.dtype,
    tokens: int,
    width: int,
    unit_offset: bool = False,
    fp32_residual: bool = False,
    fp32_weight: bool = False,
    *,
    zeros: bool = False,
    seed: int = 0,
) -> Example:
    numbers = Numbers(seed)
    x, residual, weight = numbers(tokens, width), numbers(tokens, width), numbers(width)
    if zeros:
        x, residual = torch.zeros_like(x), torch.zeros_like(residual)
    residuals = wide_if(fp32_residual, dtype)
    return Example(
        AddRMSNormRequest(dtype, width, unit_offset, residuals == torch.float32 != dtype),
        (x.to(dtype), residual.to(residuals), weight.to(wide_if(fp32_weight, dtype))),
        activations=2,
        options={"eps": 1e-5, "unit_offset": unit_offset},
    )


def _draw_add_rms_norm(choices: Choices) -> Recipe:
    return partial(
        _add_rms_norm,
        tokens=choices.integer(0, 6),
        width=choices.integer(NARROWEST, 70),
        unit_offset=choices.flag(),
        fp32_residual=choices.flag(),
        fp32_weight=choices.flag(),
        seed=choices.integer(0, 999),
    )


def _add_rms_norm_cases() -> list[Case]:
    op = "add_rms_norm"
    return [
        *(
            Case(
                op,
                words(f"{tokens}x{width}", unit_offset=offset, fp32_residual=residual, fp32_weight=weight),
                partial(
                    _add_rms_norm,
                    tokens=tokens,
                    width=width,
                    unit_offset=offset,
                    fp32_residual=residual,
                    fp32_weight=weight,
                ),
                mixed=residual or weight,
            )
            for (tokens, width), offset, residual, weight in product(SHAPES[1:], FLAGS, FLAGS, FLAGS)
        ),
        Case(op, "rows-of-zeros", partial(_add_rms_norm, tokens=3, width=16, zeros=True)),
        *(
            Case(
                op,
                words("empty", fp32_residual=fp32),
                partial(_add_rms_norm, tokens=0, width=8, fp32_residual=fp32),
                mixed=fp32,
                empty=True,
            )
            for fp32 in FLAGS
        ),
        *(
            Case(
                op,
                words(f"{tokens}x{width}", fp32_residual=fp32),
                partial(_add_rms_norm, tokens=tokens, width=width, fp32_residual=fp32),
                "large",
                mixed=fp32,
            )
            for (tokens, width), fp32 in product(LARGE, FLAGS)
        ),
    ]


def _layer_norm(
    dtype: torch.dtype, tokens: int, width: int, bias: bool = True, fp32_weight: bool = False, *, seed: int = 0
) -> Example:
    numbers, weights = Numbers(seed), wide_if(fp32_weight, dtype)
    x, weight, shift = numbers(tokens, width) + 0.5, numbers(width), numbers(width)
    inputs = (x.to(dtype), weight.to(weights), *([shift.to(weights)] if bias else []))
    constants = () if bias else (None,)
    return Example(LayerNormRequest(dtype, width, bias), inputs, 1, constants, {"eps": 1e-5})


def _draw_layer_norm(choices: Choices) -> Recipe:
    return partial(
        _layer_norm,
        tokens=choices.integer(0, 6),
        width=choices.integer(NARROWEST, 70),
        bias=choices.flag(),
        fp32_weight=choices.flag(),
        seed=choices.integer(0, 999),
    )


def _layer_norm_cases() -> list[Case]:
    op = "layer_norm"
    return [
        *(
            Case(
                op,
                words(f"{tokens}x{width}", bias=bias, fp32_weight=fp32),
                partial(_layer_norm, tokens=tokens, width=width, bias=bias, fp32_weight=fp32),
                mixed=fp32,
            )
            for (tokens, width), bias, fp32 in product(((1, 4), (5, 16), (3, 37)), FLAGS, FLAGS)
        ),
        *(
            Case(op, words("empty", bias=bias), partial(_layer_norm, tokens=0, width=8, bias=bias), empty=True)
            for bias in FLAGS
        ),
        *(
            Case(op, f"{tokens}x{width}", partial(_layer_norm, tokens=tokens, width=width), "large")
            for tokens, width in LARGE
        ),
    ]


GRIDS = {
    "rms_norm": Grid(tuple(_rms_norm_cases()), _draw_rms_norm),
    "add_rms_norm": Grid(tuple(_add_rms_norm_cases()), _draw_add_rms_norm),
    "layer_norm": Grid(tuple(_layer_norm_cases()), _draw_layer_norm),
}
