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
from typing import Protocol

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
