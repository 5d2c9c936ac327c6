"""``attention`` and ``attention_block`` by the NPU's fused operator over packed documents (layout TND).

The ends of the documents go to it as host numbers, which the batch carries: asking the device for them would stall it
in every layer. Causality is a mode of the operator and one mask of 2048 x 2048 whatever the length; without that mask
it would silently compute full attention.

What it cannot take is kept away from it: more documents in a call than ``MOST_DOCUMENTS``, and documents whose
queries see no key at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.attention import AttentionBlock, CuSeqlens

MOST_DOCUMENTS = 1000
MASK_SIZE = 2048
FULL, BOTTOM_RIGHT_CAUSAL, BAND = 0, 3, 4
LANES = 8
"""Copies of each statistic that the operator writes and reads."""


class Span(NamedTuple):
    """Documents of one call: token ranges and the ends of the documents counted from the range's start."""

    q: slice
    k: slice
    q_ends: list[int]
    k_ends: list[int]


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
    assert softcap is None, "refused by supports"
    out_TNH: Tensor = _Attention.apply(
        q_TNH, k_SKH, v_SKH, tuple(spans(q_documents, k_documents)), _mode(q_TNH, causal, window, scale)
    )
    return out_TNH


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, parts: tuple[Span, ...], mode: dict[str, Any]
    ) -> Tensor:
        out_TNH, largest, total = _forward(q_TNH, k_SKH, v_SKH, parts, mode)
        ctx.save_for_backward(q_TNH, k_SKH, v_SKH, out_TNH, largest, total)
        ctx.parts, ctx.mode = parts, mode
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor | None, ...]:
        q_TNH, k_SKH, v_SKH, out_TNH, largest, total = ctx.saved_tensors
        grads = _backward(grad_TNH, q_TNH, k_SKH, v_SKH, out_TNH, largest, total, ctx.parts, ctx.mode)
        return (*grads, None, None)


def _block_forward(
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
    assert softcap is None, "refused by supports"
    parts = tuple(spans(q_documents, k_documents))
    out_TNH, largest, total = _forward(q_TNH, k_SKH, v_SKH, parts, _mode(q_TNH, causal, window, scale))
    return out_TNH, largest[..., 0] + total[..., 0].log()


def _block_backward(
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
    """With ``exp(score - max) / sum`` in mind: the merged log-sum-exp as the maximum, and a sum of one."""
    assert softcap is None, "refused by supports"
    parts = tuple(spans(q_documents, k_documents))
    largest = lse_TN.float()[..., None].repeat(1, 1, LANES)
    return _backward(
        grad_TNH,
        q_TNH,
        k_SKH,
        v_SKH,
        out_TNH,
        largest,
        torch.ones_like(largest),
        parts,
        _mode(q_TNH, causal, window, scale),
    )


attention_block = AttentionBlock(_block_forward, _block_backward)


def spans(q_documents: CuSeqlens, k_documents: CuSeqlens) -> Iterator[Span]:
    """Calls that cover every document with queries and keys."""
    edges = zip(pairwise(q_documents.host), pairwise(k_documents.host), strict=True)
    documents: list[tuple[int, int, int, int]] = []
    for (q_start, q_end), (k_start, k_end) in edges:
        usable = q_end > q_start and k_end > k_start
        if documents and (not usable or len(documents) == MOST_DOCUMENTS):
            yield _span(documents)
            documents = []
        if usable:
            documents.append((q_start, q_end, k_start, k_end))
    if documents:
        yield _span(documents)


def _span(documents: list[tuple[int, int, int, int]]) -> Span:
    q_first, k_first = documents[0][0], documents[0][2]
    return Span(
        slice(q_first, documents[-1][1]),
        slice(k_first, documents[-1][3]),
        [q_end - q_first for _, q_end, _, _ in documents],
        [k_end - k_first for _, _, _, k_end in documents],
    )


def _mode(q_TNH: Tensor, causal: bool, window: int | None, scale: float | None) -> dict[str, Any]:
    """What the forward and the backward operator are told alike."""
    mode: dict[str, Any] = {"sparse_mode": FULL, "softmax_layout": "TND"}
    if causal:
        mode |= {"sparse_mode": BOTTOM_RIGHT_CAUSAL, "atten_mask": _mask(q_TNH.device)}
        if window is not None:
            mode |= {"sparse_mode": BAND, "pre_tockens": window - 1, "next_tockens": 0}
    return mode | {"scale": 1 / math.sqrt(q_TNH.shape[-1]) if scale is None else scale}


@lru_cache(maxsize=8)
def _mask(device: torch.device) -> Tensor:
    """The compressed causal mask: True is hidden, the opposite of PyTorch's."""
    return torch.ones(MASK_SIZE, MASK_SIZE, dtype=torch.bool, device=device).triu(1)


def _forward(
    q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, parts: tuple[Span, ...], mode: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, largest score and sum of exponentials, the last two ``[T, N, LANES]`` float32."""
    tokens, heads = q_TNH.shape[:2]
    if len(parts) == 1 and parts[0].q == slice(0, tokens):
        return _call_forward(q_TNH, k_SKH, v_SKH, parts[0], mode)
    out_TNH = torch.zeros_like(q_TNH, memory_format=torch.contiguous_format)
    largest = torch.full((tokens, heads, LANES), -torch.inf, dtype=torch.float32, device=q_TNH.device)
    total = torch.ones_like(largest)
    for part in parts:
        out_TNH[part.q], largest[part.q], total[part.q] = _call_forward(q_TNH, k_SKH, v_SKH, part, mode)
    return out_TNH, largest, total


def _call_forward(
    q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, part: Span, mode: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    out_TNH, largest, total, *_ = torch_npu.npu_fusion_attention(
        q_TNH[part.q].contiguous(),
        k_SKH[part.k].contiguous(),
        v_SKH[part.k].contiguous(),
        q_TNH.shape[1],
        "TND",
        actual_seq_qlen=part.q_ends,
        actual_seq_kvlen=part.k_ends,
        **mode,
    )
    return out_TNH, largest, total


def _backward(
    grad_TNH: Tensor,
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    out_TNH: Tensor,
    largest: Tensor,
    total: Tensor,
    parts: tuple[Span, ...],
    mode: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    options = {name: value for name, value in mode.items() if name != "scale"}
    whole = len(parts) == 1 and parts[0].q == slice(0, len(q_TNH)) and parts[0].k == slice(0, len(k_SKH))
    grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q_TNH, k_SKH, v_SKH))
    for part in parts:
        found = torch_npu.npu_fusion_attention_grad(
            q_TNH[part.q].contiguous(),
            k_SKH[part.k].contiguous(),
            v_SKH[part.k].contiguous(),
            grad_TNH[part.q].contiguous(),
            q_TNH.shape[1],
            "TND",
            softmax_max=largest[part.q].contiguous(),
            softmax_sum=total[part.q].contiguous(),
            attention_in=out_TNH[part.q].contiguous(),
            scale_value=mode["scale"],
            actual_seq_qlen=part.q_ends,
            actual_seq_kvlen=part.k_ends,
            **options,
        )
        if whole:
            return found[0], found[1], found[2]
        for grad, piece, rows in zip(grads, found[:3], (part.q, part.k, part.k), strict=True):
            grad[rows] = piece
    return grads[0], grads[1], grads[2]
