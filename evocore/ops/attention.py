"""Contract of ``attention``: scaled dot-product attention over packed documents.

Shapes: T query tokens, S key tokens, N query heads, K key-value heads (N is a multiple of K), H head size.

A batch is one row of tokens cut into documents by cumulative lengths, so that ragged and dense batches are the same
thing: a dense batch is the case of equal lengths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from evocore.ops.kernel import Request


@dataclass(frozen=True, eq=False)
class CuSeqlens:
    """Cumulative document lengths, on the host and on the device.

    Both are carried because fused kernels want a device tensor, while loops and some vendors' kernels want host
    numbers: asking the device for them would stall it in every layer.

    Attributes:
        host: ``(0, end of document 0, ..., T)``, never decreasing.
        device: the same numbers, int32.
    """

    host: tuple[int, ...]
    device: Tensor

    @classmethod
    def of(cls, host: Sequence[int], device: torch.device | str = "cpu") -> CuSeqlens:
        """Build both forms from host numbers that start with 0."""
        return cls(tuple(host), torch.tensor(host, dtype=torch.int32, device=device))

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [end - start for start, end in pairwise(self.host)]

    @property
    def total(self) -> int:
        """Number of tokens."""
        return self.host[-1]

    @cached_property
    def longest(self) -> int:
        """Length of the longest document."""
        return max(self.lengths, default=0)


class Attention(Protocol):
    """``softmax(softcap(scale * q @ k.T) + mask) @ v`` in each document by itself (Vaswani et al., 2017, sec. 3.2.1).

    Query head n reads key-value head ``n // (N / K)`` (Ainslie et al., 2023).

    Args:
        q_TNH: queries, any strides.
        k_SKH: keys; document d of the keys belongs to document d of the queries.
        v_SKH: values.
        q_documents: T tokens in documents.
        k_documents: S tokens in as many documents. With ``causal`` no document may have more queries than keys.
        causal: query i of m sees key j of n if ``j <= i + n - m``: the last query sees the last key, as with a cache.
        window: with ``causal``, only the last ``window`` keys that ``causal`` allows, itself included (Mistral).
        softcap: scores s become ``softcap * tanh(s / softcap)`` (Gemma 2); None for none.
        scale: factor of the scores; None for ``1 / sqrt(H)``.

    Returns:
        ``[T, N, H]`` in the dtype of ``q_TNH``; softmax statistics in float32. Differentiable in q, k and v.
        A document without tokens contributes nothing.
    """

    def __call__(
        self,
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
    ) -> Tensor: ...


class AttentionForward(Protocol):
    """Attention to one block of keys, with what is needed to merge it with that to other blocks.

    Args:
        as in ``Attention``.

    Returns:
        ``(out_TNH, lse_TN)``: the first as in ``Attention``; the second the logarithm of the sum of the exponentials
        of a query's scores, ``scale`` and ``softcap`` applied, in float32 (float64 for float64); ``-inf`` for a query
        that sees no key, whose output is 0. Neither is differentiable here: see ``AttentionBackward``.
    """

    def __call__(
        self,
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
    ) -> tuple[Tensor, Tensor]: ...


class AttentionBackward(Protocol):
    """Gradients of attention to one block of keys, given the output and log-sum-exp over *all* blocks.

    With the probabilities ``exp(score - lse)`` of the whole row, each block's share of the gradients can be computed
    without the other blocks (Dao, 2023, algorithm 2; Liu et al., 2023): the gradients of q add up over the blocks.

    Args:
        grad_TNH: gradient of the merged output.
        q_TNH, k_SKH, v_SKH: of this block.
        out_TNH, lse_TN: of the whole row, merged by ``merge_attention`` if there are several blocks.
        others: as in ``Attention``.

    Returns:
        ``(grad_q_TNH, grad_k_SKH, grad_v_SKH)`` in the dtypes of q, k and v.
    """

    def __call__(
        self,
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
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class AttentionBlock(NamedTuple):
    """Contract of ``attention_block``: what one step of ring attention needs of a device."""

    forward: AttentionForward
    backward: AttentionBackward


def merge_attention(
    out_TNH: Tensor, lse_TN: Tensor, other_TNH: Tensor, other_lse_TN: Tensor
) -> tuple[Tensor, Tensor]:
    """Attention to two disjoint sets of keys from the attention to each, in the dtypes of the first pair.

    A query that sees no key in one of them, or in either, is no special case.
    """
    lse = torch.logaddexp(lse_TN, other_lse_TN)
    # Where both are -inf, so is their sum, and -inf - -inf is no number: the weights there do not matter.
    base = lse.masked_fill(lse == -torch.inf, 0.0)
    mine, theirs = (lse_TN - base).exp()[..., None], (other_lse_TN - base).exp()[..., None]
    return (out_TNH * mine + other_TNH * theirs).to(out_TNH.dtype), lse


@dataclass(frozen=True)
class AttentionRequest(Request):
    """``heads`` is N, ``kv_heads`` is K, ``head_dim`` is H."""

    heads: int
    kv_heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None
    softcap: float | None = None

    @property
    def op(self) -> str:
        return "attention"


@dataclass(frozen=True)
class AttentionBlockRequest(AttentionRequest):
    """As for ``attention``."""

    @property
    def op(self) -> str:
        return "attention_block"
