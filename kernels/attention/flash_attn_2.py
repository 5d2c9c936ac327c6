"""``attention`` and ``attention_block`` by the package flash-attn 2 (Dao, 2023)."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from evocore.kernels.attention.packed import longest, nothing, packed_attention, reach, readable
from evocore.kernels.attention.statistics import from_library, nothing_seen, to_library
from evocore.ops.attention import Attention, AttentionBlock, CuSeqlens


def attention(deterministic: bool) -> Attention:
    """The kernel; if ``deterministic``, backward adds up in a fixed order, slower and with more memory."""
    return packed_attention(import_module("flash_attn").flash_attn_varlen_func, deterministic=deterministic)


def attention_block(deterministic: bool) -> AttentionBlock:
    """The pair; ``deterministic`` as in ``attention``."""
    library = import_module("flash_attn.flash_attn_interface")

    def forward(
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
    ) -> tuple[Tensor, Tensor]:
        zeros_TNH = nothing(q_TNH, k_SKH, v_SKH)
        if zeros_TNH is not None:
            return zeros_TNH, nothing_seen(q_TNH)
        out_TNH, lse_NT, *_ = library._flash_attn_varlen_forward(
            readable(q_TNH),
            readable(k_SKH),
            readable(v_SKH),
            return_softmax=False,
            **_options(q_TNH, q_documents, k_documents, causal, window, softcap, scale),
        )
        return out_TNH, from_library(lse_NT)

    def backward(
        grad_TNH: Tensor,
        q_TNH: Tensor,
        k_SKH: Tensor,
        v_SKH: Tensor,
        out_TNH: Tensor,
        lse_TN: Tensor,
        *,
        q_documents: CuSeqlens,
        k_documents: CuSeqlens,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if nothing(q_TNH, k_SKH, v_SKH) is not None:
            return torch.zeros_like(q_TNH), torch.zeros_like(k_SKH), torch.zeros_like(v_SKH)
        grads = [x.new_empty(x.shape) for x in (q_TNH, k_SKH, v_SKH)]
        library._flash_attn_varlen_backward(
            readable(grad_TNH),
            readable(q_TNH),
            readable(k_SKH),
            readable(v_SKH),
            readable(out_TNH),
            to_library(lse_TN),
            *grads,
            deterministic=deterministic,
            **_options(q_TNH, q_documents, k_documents, causal, window, softcap, scale),
        )
        grad_q_TNH, grad_k_SKH, grad_v_SKH = grads
        return grad_q_TNH, grad_k_SKH, grad_v_SKH

    return AttentionBlock(forward, backward)


def _options(
    q_TNH: Tensor,
    q_documents: CuSeqlens,
    k_documents: CuSeqlens,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float | None,
) -> dict[str, Any]:
    """What forward and backward of a block are both told."""
    left, right = reach(causal, window)
    return {
        "cu_seqlens_q": q_documents.device,
        "cu_seqlens_k": k_documents.device,
        "max_seqlen_q": longest(q_documents),
        "max_seqlen_k": longest(k_documents),
        "dropout_p": 0.0,
        "softmax_scale": 1 / math.sqrt(q_TNH.shape[-1]) if scale is None else scale,
        "causal": causal,
        "window_size_left": left,
        "window_size_right": right,
        "softcap": softcap or 0.0,
        "alibi_slopes": None,
    }
