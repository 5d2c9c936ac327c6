"""Cases of ``cross_entropy``, ``cross_entropy_shard`` and ``linear_cross_entropy``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from evocore.ops.cross_entropy import (
    IGNORE_INDEX,
    CrossEntropyRequest,
    CrossEntropyShardRequest,
    LinearCrossEntropyRequest,
)
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case, Example, Grid, Numbers, Recipe, words
from evocore.testing.conformance.vocabulary_shards import differentiable

FLAGS = (False, True)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 1e-2},
    "own-ignore-index": {"ignore_index": 3},
    "everything": {"label_smoothing": 0.2, "z_loss": 1e-2, "ignore_index": -1},
}
CAPPED: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 3.0},
    "softcap-everything": {"softcap": 2.0, **OPTIONS["everything"]},
}
"""Further options of ``linear_cross_entropy``."""
EXTREMES = (("plain", False), ("everything", True))
"""Options and whether tokens are weighted."""


def _labels(logits_TV: Tensor, ignore_index: int) -> Tensor:
    """A third of the labels is what the logits favour, a third is random, a third ignored."""
    labels_T = logits_TV.argmax(-1)
    labels_T[1::3] = Numbers(5).below(logits_TV.shape[1], len(labels_T[1::3]))
    labels_T[2::3] = ignore_index
    return labels_T


def _weights(tokens: int, weighted: bool) -> Tensor | None:
    return Numbers(6)(tokens).abs().float() if weighted else None


def _cross_entropy(
    dtype: torch.dtype, tokens: int, vocab: int, weighted: bool = False, *, seed: int = 0, **options: Any
) -> Example:
    logits = 3 * Numbers(seed)(tokens, vocab)
    constants = (_labels(logits, options.get("ignore_index", IGNORE_INDEX)), _weights(tokens, weighted))
    return Example(CrossEntropyRequest(dtype, vocab), (logits.to(dtype),), 1, constants, options)


def _shard(dtype: torch.dtype, tokens: int, vocab: int, shards: int, **more: Any) -> Example:
    """``vocab`` is that of a shard."""
    whole = _cross_entropy(dtype, tokens, vocab * shards, **more)
    request, options = CrossEntropyShardRequest(dtype, vocab), whole.options | {"shards": shards}
    return Example(request, whole.inputs, 1, whole.constants, options, whole={"shards": 1})


def _linear(
    dtype: torch.dtype,
    tokens: int,
    width: int,
    vocab: int,
    weighted: bool = False,
    *,
    seed: int = 0,
    softcap: float | None = None,
    **options: Any,
) -> Example:
    numbers = Numbers(seed)
    # Logits of the order of 1 whatever the width: larger ones are told from one another by no low precision.
    hidden, weight = numbers(tokens, width), numbers(vocab, width) * min(1.0, 3 / width**0.5)
    labels_T = _labels(hidden @ weight.T, options.get("ignore_index", IGNORE_INDEX))
    request = LinearCrossEntropyRequest(dtype, width, vocab, softcap)
    options |= {} if softcap is None else {"softcap": softcap}
    return Example(request, (hidden.to(dtype), weight.to(dtype)), 1, (labels_T, _weights(tokens, weighted)), options)


def _cases(
    op: str,
    recipe: Callable[..., Example],
    small: dict[str, Any],
    large: dict[str, Any],
    options: dict[str, dict[str, Any]] = OPTIONS,
) -> tuple[Case, ...]:
    """``small`` and ``large`` are label -> sizes; the first of the small ones takes part in two options only."""
    first, *_ = small
    labelled = [
        (shape, name, weighted)
        for shape, name, weighted in product(small, options, FLAGS)
        if shape != first or (name, weighted) in EXTREMES
    ]
    empty = {**small[first], "tokens": 0}
    return (
        *(
            Case(
                op,
                words(shape, name, weighted=weighted),
                partial(recipe, **small[shape], weighted=weighted, **options[name]),
                representative=(name, weighted) in EXTREMES,
            )
            for shape, name, weighted in labelled
        ),
        *(
            Case(op, words("empty", weighted=weighted), partial(recipe, **empty, weighted=weighted), empty=True)
            for weighted in FLAGS
        ),
        *(
            Case(op, f"{shape}-{name}", partial(recipe, **large[shape], weighted=True, **OPTIONS[name]), "large")
            for shape, name in product(large, ("plain", "everything"))
        ),
    )


def _draw_options(choices: Choices) -> dict[str, Any]:
    return {
        "weighted": choices.flag(),
        "ignore_index": choices.one_of((IGNORE_INDEX, 0, -1)),
        "label_smoothing": choices.one_of((0.0, 0.1)),
        "z_loss": choices.one_of((0.0, 1e-2)),
        "seed": choices.integer(0, 999),
    }


def _draw_cross_entropy(choices: Choices) -> Recipe:
    sizes: dict[str, Any] = {"tokens": choices.integer(0, 9), "vocab": choices.integer(1, 90)}
    return partial(_cross_entropy, **sizes, **_draw_options(choices))


def _draw_shard(choices: Choices) -> Recipe:
    sizes: dict[str, Any] = {
        "tokens": choices.integer(0, 9),
        "vocab": choices.integer(1, 40),
        "shards": choices.integer(1, 3),
    }
    return partial(_shard, **sizes, **_draw_options(choices))


def _draw_linear(choices: Choices) -> Recipe:
    sizes: dict[str, Any] = {
        "tokens": choices.integer(0, 9),
        "width": choices.integer(1, 20),
        "vocab": choices.integer(1, 60),
    }
    return partial(_linear, **sizes, **_draw_options(choices), softcap=choices.one_of((None, 3.0)))


GRIDS = {
    "cross_entropy": Grid(
        _cases(
            "cross_entropy",
            _cross_entropy,
            {"2x5": {"tokens": 2, "vocab": 5}, "13x37": {"tokens": 13, "vocab": 37}},
            {"17x32003": {"tokens": 17, "vocab": 32003}, "5x151936": {"tokens": 5, "vocab": 151936}},
        ),
        _draw_cross_entropy,
    ),
    "cross_entropy_shard": Grid(
        _cases(
            "cross_entropy_shard",
            _shard,
            {
                "2x5-of-10": {"tokens": 2, "vocab": 5, "shards": 2},
                "8x19-of-38": {"tokens": 8, "vocab": 19, "shards": 2},
            },
            {"17x32000-of-64000": {"tokens": 17, "vocab": 32000, "shards": 2}},
        ),
        _draw_shard,
        differentiable,
    ),
    "linear_cross_entropy": Grid(
        _cases(
            "linear_cross_entropy",
            _linear,
            {
                "2x3x5": {"tokens": 2, "width": 3, "vocab": 5},
                "9x8x37": {"tokens": 9, "width": 8, "vocab": 37},
            },
            {
                "65x256x32003": {"tokens": 65, "width": 256, "vocab": 32003},
                "200x96x1000": {"tokens": 200, "width": 96, "vocab": 1000},
            },
            OPTIONS | CAPPED,
        ),
        _draw_linear,
    ),
}
