"""Cases of ``attention`` and ``attention_block``."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any

import torch

from evocore.ops.attention import AttentionBlockRequest, AttentionRequest, CuSeqlens
from evocore.testing.conformance.attention_blocks import differentiable
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case, Example, Grid, Numbers, Recipe

HEADS = (64, 96, 128, 256)
"""Head sizes of what people train."""


def _attention(
    dtype: torch.dtype,
    queries: list[int],
    keys: list[int] | None = None,
    heads: int = 4,
    kv_heads: int = 2,
    width: int = 4,
    *,
    blocks: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Example:
    """``queries`` and ``keys`` (None: as many) of each document; ``blocks`` makes it one of ``attention_block``."""
    keys = queries if keys is None else keys
    numbers, shape = Numbers(seed), (sum(keys), kv_heads, width)
    tensors = numbers(sum(queries), heads, width), numbers(*shape), numbers(*shape)
    call = options | {
        "q_documents": CuSeqlens.of([0, *accumulate(queries)]),
        "k_documents": CuSeqlens.of([0, *accumulate(keys)]),
    }
    asked = {key: value for key, value in options.items() if key != "scale"}
    inputs = tuple(x.to(dtype) for x in tensors)
    if blocks is None:
        return Example(AttentionRequest(dtype, heads, kv_heads, width, **asked), inputs, 3, options=call)
    request = AttentionBlockRequest(dtype, heads, kv_heads, width, **asked)
    full = AttentionBlockRequest(dtype, heads, kv_heads, width, **(asked | {"causal": False}))
    also = (full,) if blocks > 1 else ()
    return Example(request, inputs, 3, options=call | {"blocks": blocks}, whole={"blocks": 1}, also=also)


SEVERAL, CACHE = [3, 0, 5, 5, 0], [4, 2, 5, 9, 6]
FULL: dict[str, Any] = {"causal": False}
FEW: dict[str, Any] = {"heads": 2, "kv_heads": 1}
REPRESENTATIVE = {
    "attention": {"grouped", "everything"},
    "attention_block": {"cache", "two-blocks-ring-step"},
}

SMALL: dict[str, dict[str, Any]] = {
    "causal": {"queries": [9], "heads": 2, "width": 8},
    "full": {"queries": [9], "heads": 2, "width": 8, **FULL},
    "grouped": {"queries": [7], "heads": 6},
    "one-kv-head-full": {"queries": [7], "kv_heads": 1, **FULL},
    "documents": {"queries": SEVERAL, **FEW},
    "documents-full": {"queries": SEVERAL, **FEW, **FULL},
    "cache": {"queries": SEVERAL, "keys": CACHE, **FEW},
    "cache-full": {"queries": SEVERAL, "keys": CACHE, **FEW, **FULL},
    "more-queries-than-keys-full": {"queries": [5, 3, 2], "keys": [2, 0, 4], **FEW, **FULL},
    "one-query": {"queries": [1, 1], "keys": [6, 3], **FEW},
    "window": {"queries": [9, 4], **FEW, "window": 3},
    "window-of-itself": {"queries": [6], "heads": 2, "window": 1},
    "window-wider-than-document": {"queries": [6], "heads": 2, "window": 50},
    "window-cache": {"queries": SEVERAL, "keys": CACHE, **FEW, "window": 2},
    "softcap": {"queries": [8, 3], **FEW, "softcap": 1.5},
    "scale": {"queries": [8, 3], **FEW, "scale": 0.9},
    "odd-heads": {"queries": [6, 3], "heads": 3, "kv_heads": 1, "width": 20},
    "everything": {"queries": SEVERAL, "keys": CACHE, **FEW, "window": 3, "softcap": 2.0, "scale": 0.7},
    "heads-of-16": {"queries": [3, 0, 2], "width": 16},
    "heads-of-16-cache-window": {"queries": [2, 0, 3], "keys": [4, 1, 3], "width": 16, "window": 2},
    "heads-of-16-full": {"queries": [5, 3], "keys": [2, 4], "width": 16, **FULL},
}
"""Fused kernels of some devices take heads whose size is a multiple of 16, and no others."""
EMPTY: dict[str, dict[str, Any]] = {
    "empty": {"queries": [0], "width": 16},
    "empty-no-documents": {"queries": [], "width": 16},
    "empty-queries": {"queries": [0, 0], "keys": [3, 0], "width": 16, **FULL},
}
MEDIUM: dict[str, dict[str, Any]] = {
    "long": {"queries": [300, 17], **FEW, "width": 8},
    "long-full": {"queries": [150], "keys": [290], **FEW, "width": 8, **FULL},
    "long-cache": {"queries": [140], "keys": [333], **FEW, "width": 8},
    "long-window": {"queries": [300, 150], **FEW, "width": 8, "window": 70},
    "long-window-cache": {
        "queries": [140], "keys": [333], **FEW, "width": 8, "window": 33, "softcap": 3.0
    },
    "many-equal-documents": {"queries": [64] * 40, "heads": 8},
}  # fmt: skip
LARGE: dict[str, dict[str, Any]] = {
    "documents": {"queries": [300, 17, 0, 129]},
    "one-document": {"queries": [513], "heads": 8},
    "full-cache": {"queries": [65, 200], "keys": [130, 333], **FULL},
    "window-softcap": {"queries": [257, 100], "window": 70, "softcap": 20.0},
}
"""Each with every head size of ``HEADS``."""
BLOCK_ONLY: dict[str, dict[str, Any]] = {
    "two-blocks-full": {"queries": [8, 3], "keys": [9, 6], **FEW, "blocks": 2, **FULL},
    "two-blocks-one-without-keys": {"queries": [4, 2, 3], "keys": [1, 0, 6], **FEW, "blocks": 2, **FULL},
    "two-blocks-ring-step": {"queries": [2, 0, 3], "keys": [4, 1, 3], **FEW, "blocks": 2},
    "two-blocks-softcap": {"queries": [6, 3], "keys": [9, 6], **FEW, "blocks": 2, "softcap": 2.0, **FULL},
    "two-blocks-heads-of-16": {"queries": [2, 0, 3], "keys": [4, 1, 3], "width": 16, "blocks": 2},
}
BLOCK_ONLY_LARGE: dict[str, dict[str, Any]] = {
    "two-blocks-ring-step": {"queries": [200, 65], "keys": [400, 129], "blocks": 2},
    "two-blocks-full": {"queries": [257], "keys": [300], "blocks": 2, **FULL},
}
BLOCK = {
    label: SMALL[label]
    for label in (
        *("full", "grouped", "cache", "more-queries-than-keys-full", "window", "odd-heads", "everything"),
        *("heads-of-16", "heads-of-16-cache-window", "heads-of-16-full"),
    )
}
"""What need not be the same code as in ``attention``."""


def _cases(
    op: str, small: dict[str, dict[str, Any]], large: dict[str, dict[str, Any]], **more: Any
) -> tuple[Case, ...]:
    whole = {
        f"{label}-heads-of-{width}": {**recipe, "width": width} for width in HEADS for label, recipe in large.items()
    }
    return tuple(
        Case(
            op,
            label,
            partial(_attention, **more | recipe),
            size,
            empty=recipes is EMPTY,
            representative=recipes is EMPTY or label in REPRESENTATIVE[op],
        )
        for size, recipes in (("small", small), ("small", EMPTY), ("medium", MEDIUM), ("large", whole))
        for label, recipe in recipes.items()
    )


def _draw(choices: Choices, block: bool = False) -> Recipe:
    causal = not choices.flag()
    queries, keys = [], []
    for _ in range(choices.integer(1, 3)):
        queries.append(choices.integer(0, 5))
        keys.append(choices.integer(queries[-1] if causal else 0, 8))
    kv_heads = choices.integer(1, 2)
    options: dict[str, Any] = {"causal": causal, "softcap": choices.one_of((None, 1.5))}
    if block:
        options["blocks"] = choices.integer(1, 2)
    if causal and options.get("blocks") != 2:
        options["window"] = choices.one_of((None, 1, 2, 4))
    return partial(
        _attention,
        queries=queries,
        keys=keys,
        heads=kv_heads * choices.integer(1, 2),
        kv_heads=kv_heads,
        width=choices.integer(1, 18),
        scale=choices.one_of((None, 0.6)),
        seed=choices.integer(0, 999),
        **options,
    )


GRIDS = {
    "attention": Grid(_cases("attention", SMALL, LARGE), _draw),
    "attention_block": Grid(
        _cases("attention_block", BLOCK | BLOCK_ONLY, LARGE | BLOCK_ONLY_LARGE, blocks=1),
        partial(_draw, block=True),
        differentiable,
    ),
}
