"""What the libraries of the FlashAttention family (Dao, 2023) ask of packed documents, seen to in one place.

They align the causal mask as the contract does, at the last query and the last key (from release 2.1), and leave
zeros where there is nothing to attend to. They read rows by vectors of 16 bytes without asking where these begin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evocore.ops.attention import Attention, CuSeqlens

VECTOR = 16
"""Bytes that divide the addresses of the rows."""


def readable(x: Tensor) -> Tensor:
    """``x``, copied unless its rows are contiguous and begin where a vector can."""
    places = [x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1])]
    if x.stride(-1) == 1 and not any(place % VECTOR for place in places):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def longest(documents: CuSeqlens) -> int:
    """Length of the longest document, 2 at least.

    If told that 1 is the most, FlashAttention 2 takes a way meant for generation, where no document lacks a query.
    """
    return max(2, documents.longest)


def reach(causal: bool, window: int | None, unlimited: int | None = -1) -> tuple[int | None, int | None]:
    """Keys to the left and to the right of its own that a query sees; ``unlimited`` is the library's word for all."""
    if not causal:
        return unlimited, unlimited
    return (unlimited if window is None else window - 1), 0


def nothing(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor | None:
    """Zeros if there are no queries or no keys at all, which no library is asked about; None if there are some."""
    if q_TNH.shape[0] and k_SKH.shape[0]:
        return None
    out_TNH: Tensor = _Zeros.apply(q_TNH, k_SKH, v_SKH)
    return out_TNH


def packed_attention(call: Callable[..., Any], *, unlimited: int | None = -1, **fixed: Any) -> Attention:
    """``attention`` by a library's ``flash_attn_varlen_func``.

    Args:
        call: the function; it is differentiable and returns the output, in some releases with more behind it.
        unlimited: its word for a side of the window without a limit.
        fixed: further arguments, the same in every call.
    """

    def attention(
        q_TNH: Tensor,
        k_SKH: Tensor,
        v_SKH: Tensor,
        *,
        q_documents: CuSeqlens,
        k_documents: CuSeqlens,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
    ) -> Tensor:
        zeros_TNH = nothing(q_TNH, k_SKH, v_SKH)
        if zeros_TNH is not None:
            return zeros_TNH
        out = call(
            readable(q_TNH),
            readable(k_SKH),
            readable(v_SKH),
            cu_seqlens_q=q_documents.device,
            cu_seqlens_k=k_documents.device,
            max_seqlen_q=longest(q_documents),
            max_seqlen_k=longest(k_documents),
            softmax_scale=scale,
            causal=causal,
            window_size=reach(causal, window, unlimited),
            softcap=softcap or 0.0,
            **fixed,
        )
        out_TNH: Tensor = out[0] if isinstance(out, tuple) else out
        return out_TNH

    return attention


class _Zeros(torch.autograd.Function):
    """Zeros that depend on q, k and v, with gradients of zero: times zero would make numbers of infinities."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return q.new_zeros(q.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.new_zeros(x.shape) for x in ctx.saved_tensors)
