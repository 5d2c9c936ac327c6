"""Cases of ``rotary``, ``swiglu`` and ``geglu``."""

from __future__ import annotations

from functools import partial
from itertools import product

import torch

from evocore.ops.glu import GeGLURequest, SwiGLURequest
from evocore.ops.rotary import RotaryRequest
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case, Example, Grid, Numbers, Recipe, words

FLAGS = (False, True)
SHAPES = ((1, 1), (5, 16), (3, 37))
LARGE = ((64, 4096), (33, 11008), (7, 14337))
FORMS = ("tanh", "none")


def _rotary(
    dtype: torch.dtype, tokens: int, heads: int, width: int, pairs: int, interleaved: bool = False, *, seed: int = 0
) -> Example:
    numbers = Numbers(seed)
    x, angles = numbers(tokens, heads, width), 3 * numbers(tokens, pairs)
    return Example(
        RotaryRequest(dtype, width, pairs, interleaved),
        (x.to(dtype),),
        activations=1,
        constants=(angles.cos().float(), angles.sin().float()),
        options={"interleaved": interleaved},
    )


def _draw_rotary(choices: Choices) -> Recipe:
    pairs = choices.integer(1, 9)
    return partial(
        _rotary,
        tokens=choices.integer(0, 5),
        heads=choices.integer(1, 4),
        width=2 * pairs + choices.integer(0, 5),
        pairs=pairs,
        interleaved=choices.flag(),
        seed=choices.integer(0, 999),
    )


def _rotary_cases() -> list[Case]:
    op = "rotary"
    shapes = ((8, 4), (8, 3), (8, 1), (2, 1), (7, 3))
    large = ((64, 32), (128, 64), (256, 32))
    return [
        *(
            Case(
                op,
                words(f"{pairs}-pairs-of-{width}", interleaved=way),
                partial(_rotary, tokens=5, heads=3, width=width, pairs=pairs, interleaved=way),
            )
            for (width, pairs), way in product(shapes, FLAGS)
        ),
        *(
            Case(
                op,
                words("empty", f"{pairs}-pairs", interleaved=way),
                partial(_rotary, tokens=0, heads=2, width=8, pairs=pairs, interleaved=way),
                empty=True,
            )
            for pairs, way in product((4, 3), FLAGS)
        ),
        *(
            Case(
                op,
                words(f"{pairs}-pairs-of-{width}", interleaved=way),
                partial(_rotary, tokens=300, heads=9, width=width, pairs=pairs, interleaved=way),
                "large",
            )
            for (width, pairs), way in product(large, FLAGS)
        ),
    ]


def _swiglu(dtype: torch.dtype, tokens: int, width: int, *, seed: int = 0) -> Example:
    numbers = Numbers(seed)
    gate, up = 2 * numbers(tokens, width), numbers(tokens, width)
    return Example(SwiGLURequest(dtype, width), (gate.to(dtype), up.to(dtype)), activations=2)


def _geglu(dtype: torch.dtype, tokens: int, width: int, approximate: str, *, seed: int = 0) -> Example:
    gate_and_up = _swiglu(dtype, tokens, width, seed=seed).inputs
    return Example(GeGLURequest(dtype, width, approximate), gate_and_up, 2, options={"approximate": approximate})


def _draw_swiglu(choices: Choices) -> Recipe:
    return partial(_swiglu, tokens=choices.integer(0, 6), width=choices.integer(1, 70), seed=choices.integer(0, 999))


def _draw_geglu(choices: Choices) -> Recipe:
    return partial(
        _geglu,
        tokens=choices.integer(0, 6),
        width=choices.integer(1, 70),
        approximate=choices.one_of(FORMS),
        seed=choices.integer(0, 999),
    )


def _gated_cases() -> tuple[list[Case], list[Case]]:
    shapes = [(f"{tokens}x{width}", tokens, width, "small") for tokens, width in SHAPES]
    shapes += [("empty", 0, 8, "small")]
    shapes += [(f"{tokens}x{width}", tokens, width, "large") for tokens, width in LARGE]
    swiglu = [
        Case("swiglu", label, partial(_swiglu, tokens=tokens, width=width), size, empty=tokens == 0)
        for label, tokens, width, size in shapes
    ]
    geglu = [
        Case(
            "geglu",
            f"{label}-{form}",
            partial(_geglu, tokens=tokens, width=width, approximate=form),
            size,
            empty=tokens == 0,
        )
        for (label, tokens, width, size), form in product(shapes, FORMS)
    ]
    return swiglu, geglu


_SWIGLU, _GEGLU = _gated_cases()
GRIDS = {
    "rotary": Grid(tuple(_rotary_cases()), _draw_rotary),
    "swiglu": Grid(tuple(_SWIGLU), _draw_swiglu),
    "geglu": Grid(tuple(_GEGLU), _draw_geglu),
}
