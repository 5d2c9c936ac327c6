"""The meaning of ``attention`` and ``attention_block``, written to be read; other providers are compared with it.

Low precision is treated as matrix units treat it: products take and give the activations' dtype, the softmax
between them is float32. It builds the whole score matrix of a document, so memory grows with its length squared.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from evocore.kernels.attention.masks import visible
from evocore.ops.attention import AttentionBlock, CuSeqlens


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
    group = q_TNH.shape[1] // k_SKH.shape[1]
    k_SNH, v_SNH = k_SKH.repeat_interleave(group, 1), v_SKH.repeat_interleave(group, 1)
    pieces = [q_TNH[:0]]
    for tokens, keys in _documents(q_documents, k_documents):
        scores = _scores(_heads(q_TNH, tokens), _heads(k_SNH, keys), softcap, scale)
        if causal:
            scores = scores.masked_fill(_hidden(scores, window), -math.inf)
        pieces.append((scores.softmax(-1).to(v_SNH.dtype) @ _heads(v_SNH, keys)).transpose(0, 1))
    return torch.cat(pieces)


def attention_forward(
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
    """``AttentionForward``: as ``attention``, with the softmax's denominator in full."""
    group = q_TNH.shape[1] // k_SKH.shape[1]
    k_SNH, v_SNH = k_SKH.repeat_interleave(group, 1), v_SKH.repeat_interleave(group, 1)
    out_TNH = torch.empty_like(q_TNH)
    lse_TN = q_TNH.new_empty(q_TNH.shape[:2], dtype=torch.promote_types(q_TNH.dtype, torch.float32))
    for tokens, keys in _documents(q_documents, k_documents):
        scores = _scores(_heads(q_TNH, tokens), _heads(k_SNH, keys), softcap, scale)
        if causal:
            scores = scores.masked_fill(_hidden(scores, window), -math.inf)
        lse_Nm = scores.logsumexp(-1)
        probs = _probabilities(scores, lse_Nm).to(v_SNH.dtype)
        out_TNH[tokens] = (probs @ _heads(v_SNH, keys)).transpose(0, 1)
        lse_TN[tokens] = lse_Nm.T
    return out_TNH, lse_TN


def attention_backward(
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
    """``AttentionBackward``, by hand: gradients of P = exp(S - lse), out = P V (Dao, 2023, section 2.3)."""
    kv_heads, group = k_SKH.shape[1], q_TNH.shape[1] // k_SKH.shape[1]
    k_SNH, v_SNH = k_SKH.repeat_interleave(group, 1), v_SKH.repeat_interleave(group, 1)
    grad_q_TNH, grad_k_SNH, grad_v_SNH = (torch.empty_like(x) for x in (q_TNH, k_SNH, v_SNH))
    factor = 1 / math.sqrt(q_TNH.shape[-1]) if scale is None else scale
    delta_TN = (grad_TNH.to(lse_TN.dtype) * out_TNH.to(lse_TN.dtype)).sum(-1)
    for tokens, keys in _documents(q_documents, k_documents):
        q_NmH, grad_NmH = _heads(q_TNH, tokens), _heads(grad_TNH, tokens)
        k_NnH, v_NnH = _heads(k_SNH, keys), _heads(v_SNH, keys)
        scores = _scores(q_NmH, k_NnH, softcap, scale)
        slope = 1.0 if softcap is None else 1 - (scores / softcap).square()
        if causal:
            scores = scores.masked_fill(_hidden(scores, window), -math.inf)
        probs = _probabilities(scores, lse_TN[tokens].T)
        grad_probs = (grad_NmH @ v_NnH.mT).to(probs.dtype)
        grad_scores = probs * (grad_probs - delta_TN[tokens].T[..., None])
        grad_products = (grad_scores * slope * factor).to(q_TNH.dtype)
        grad_v_SNH[keys] = (probs.to(v_SNH.dtype).mT @ grad_NmH).transpose(0, 1)
        grad_q_TNH[tokens] = (grad_products @ k_NnH).transpose(0, 1)
        grad_k_SNH[keys] = (grad_products.mT @ q_NmH).transpose(0, 1)
    return (
        grad_q_TNH,
        grad_k_SNH.unflatten(1, (kv_heads, group)).sum(2),
        grad_v_SNH.unflatten(1, (kv_heads, group)).sum(2),
    )


attention_block = AttentionBlock(attention_forward, attention_backward)


def _documents(q_documents: CuSeqlens, k_documents: CuSeqlens) -> Iterator[tuple[slice, slice]]:
    """Of each document its query tokens and its key tokens."""
    for queries, keys in zip(pairwise(q_documents.host), pairwise(k_documents.host), strict=True):
        yield slice(*queries), slice(*keys)


def _heads(x_TNH: Tensor, tokens: slice) -> Tensor:
    """Some tokens as ``[N, tokens, H]``."""
    return x_TNH[tokens].transpose(0, 1)


def _scores(q_NmH: Tensor, k_NnH: Tensor, softcap: float | None, scale: float | None) -> Tensor:
    """``[N, m, n]`` before the mask, in float32 at least."""
    scale = 1 / math.sqrt(q_NmH.shape[-1]) if scale is None else scale
    scores = (q_NmH @ k_NnH.mT).to(torch.promote_types(q_NmH.dtype, torch.float32)) * scale
    return scores if softcap is None else softcap * (scores / softcap).tanh()


def _hidden(scores: Tensor, window: int | None) -> Tensor:
    return ~visible(scores.shape[1], scores.shape[2], window, scores.device)


def _probabilities(scores: Tensor, lse_Nm: Tensor) -> Tensor:
    """``exp(scores - lse)``; zeros for a query that sees no key, whose lse is minus infinity."""
    return (scores - lse_Nm.masked_fill(lse_Nm == -math.inf, 0.0)[..., None]).exp()
