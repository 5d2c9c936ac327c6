"""What fused attention is told beside its tensors, and what of it Atlas A2 takes, by the vendor's documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from standin_cann.kernels_basic import FLOATS
from standin_cann.opapi import require
from torch import Tensor

MASK_SIZE = 2048
DEFAULT, ALL, LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL, BAND = range(5)
LARGEST_HEAD, MOST_HEADS, MOST_DOCUMENTS = 768, 256, 1024
QUERY_AXES = {"BSH": "bs", "SBH": "sb", "BSND": "bsn", "BNSD": "bns", "TND": "tn"}


@dataclass(frozen=True)
class Options:
    """What forward and backward are told alike."""

    pse: Tensor | None
    drop_mask: Tensor | None
    mask: Tensor | None
    scale: float
    keep_prob: float
    before: int
    after: int
    heads: int
    layout: str
    sparse_mode: int

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Options:
        return cls(**{name: arguments[name] for name in cls.__dataclass_fields__})


def check(q: Tensor, k: Tensor, v: Tensor, options: Options, arguments: dict[str, Any]) -> None:
    layout, heads = options.layout, options.heads
    require(q.dtype in FLOATS, f"query is float32, bfloat16 or float16, not {q.dtype}")
    require(
        q.dtype == k.dtype == v.dtype, f"query, key and value have one dtype, not {q.dtype}, {k.dtype}, {v.dtype}"
    )
    require(layout in QUERY_AXES, f"layout {layout!r} is none of {', '.join(QUERY_AXES)}")
    require(arguments["padding_mask"] is None, "padding_mask is not supported")
    require(not arguments["prefix"], "the stand-in has no prefix")
    for name, tensor in (("query", q), ("key", k), ("value", v)):
        require(tensor.dim() == (4 if layout in ("BSND", "BNSD") else 3), f"{name} {tensor.shape} in layout {layout}")
    require(1 <= heads <= MOST_HEADS, f"1 to {MOST_HEADS} query heads, not {heads}")
    q_size, k_size, v_size = (_head_size(tensor, options, q) for tensor in (q, k, v))
    require(
        q_size == k_size >= v_size,
        f"heads of query and key are of one size, of value no larger: {q_size}, {k_size}, {v_size}",
    )
    require(q_size <= LARGEST_HEAD, f"a head has up to {LARGEST_HEAD} features, not {q_size}")
    key_heads = key_heads_of(k, options, q)
    require(
        key_heads > 0 and heads % key_heads == 0, f"{heads} query heads are a multiple of the {key_heads} key heads"
    )
    require(0.0 < options.keep_prob <= 1.0, f"keep_prob is in (0, 1], not {options.keep_prob}")
    require((options.keep_prob < 1) == (options.drop_mask is not None), "a dropout mask exactly where keep_prob < 1")
    _check_mask(options)


def _check_mask(options: Options) -> None:
    mask, mode = options.mask, options.sparse_mode
    require(mode <= BAND, f"the stand-in has no sparse_mode {mode}")
    if mask is None:
        return  # and the mode is not looked at: full attention
    require(mask.dtype in (torch.bool, torch.uint8), f"a mask is bool or uint8, not {mask.dtype}")
    if mode in (LEFT_UP_CAUSAL, RIGHT_DOWN_CAUSAL, BAND):
        require(
            mask.shape[-2:] == (MASK_SIZE, MASK_SIZE),
            f"sparse_mode {mode} wants a mask of 2048 x 2048, not {mask.shape}",
        )
        corner = mask.reshape(-1, MASK_SIZE, MASK_SIZE)[0]
        right = bool(corner[0, 1]) and not bool(corner[0, 0]) and not bool(corner[-1, -1]) and not bool(corner[-1, 0])
        require(right, "a compressed mask is torch.triu(torch.ones(2048, 2048), diagonal=1): true is masked")
    require(mode != BAND or options.before >= -options.after, "the band is empty")


def _head_size(x: Tensor, options: Options, q: Tensor) -> int:
    if options.layout in ("BSH", "SBH"):
        return x.shape[-1] // (options.heads if x is q else key_heads_of(x, options, q))
    return x.shape[-1]


def key_heads_of(k: Tensor, options: Options, q: Tensor) -> int:
    """How many heads keys have, which layouts BSH and SBH do not say."""
    if options.layout in ("BSH", "SBH"):
        return max(1, k.shape[-1] // max(1, q.shape[-1] // options.heads))
    return k.shape[QUERY_AXES[options.layout].index("n")]
