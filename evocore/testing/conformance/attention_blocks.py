"""The two halves of ``attention_block`` as one differentiable function, over one block of keys or over two.

Two blocks are what ring attention makes of a row: the outputs are merged, and each block's share of the gradients is
computed with the statistics of the whole row. Without ``causal`` the keys of a document are cut in the middle; with
it, where the queries begin: the keys before are all seen, those after are causal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from evocore.ops.attention import AttentionBlock, CuSeqlens, merge_attention
from evocore.testing.conformance.calls import ContractError


@dataclass(frozen=True)
class _Part:
    """Some of the keys: their positions (None for all), in documents, and how they are seen."""

    keys: Tensor | None
    options: dict[str, Any]

    def of(self, x_SKH: Tensor) -> Tensor:
        return x_SKH if self.keys is None else x_SKH[self.keys]


def differentiable(kernel: AttentionBlock) -> Callable[..., tuple[Tensor, Tensor]]:
    """``AttentionForward`` with gradients and one more option, ``blocks``: 1 or 2."""

    def attention_block(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, *, blocks: int, **options: Any) -> Any:
        parts = _halves(k_SKH.device, **options) if blocks == 2 else [_Part(None, options)]
        out_TNH, lse_TN = _Attention.apply(kernel, parts, q_TNH, k_SKH, v_SKH)
        # The scores are products in the precision of the activations, and so is what becomes of them to be judged.
        return out_TNH, lse_TN.to(q_TNH.dtype)

    return attention_block


def _halves(
    device: torch.device, *, q_documents: CuSeqlens, k_documents: CuSeqlens, causal: bool = True, **options: Any
) -> list[_Part]:
    positions: tuple[list[int], list[int]] = [], []
    lengths: tuple[list[int], list[int]] = [], []
    for queries, (start, end) in zip(q_documents.lengths, pairwise(k_documents.host), strict=True):
        middle = end - queries if causal else (start + end) // 2
        for half, first, last in ((0, start, middle), (1, middle, end)):
            positions[half].extend(range(first, last))
            lengths[half].append(last - first)
    return [
        _Part(
            torch.tensor(positions[half], dtype=torch.int64, device=device),
            {
                **options,
                "q_documents": q_documents,
                "k_documents": CuSeqlens.of([0, *accumulate(lengths[half])], device),
                "causal": causal and half == 1,
            },
        )
        for half in (0, 1)
    ]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kernel: AttentionBlock, parts: list[_Part], q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor
    ) -> tuple[Tensor, Tensor]:
        first, *rest = [kernel.forward(q_TNH, part.of(k_SKH), part.of(v_SKH), **part.options) for part in parts]
        out_TNH, lse_TN = first
        statistics = torch.promote_types(q_TNH.dtype, torch.float32)
        if (lse_TN.shape, lse_TN.dtype) != (q_TNH.shape[:2], statistics):
            raise ContractError(
                f"forward gives a log-sum-exp of {lse_TN.dtype} {list(lse_TN.shape)}, "
                f"expected {statistics} {list(q_TNH.shape[:2])}"
            )
        for other_TNH, other_lse_TN in rest:
            out_TNH, lse_TN = merge_attention(out_TNH, lse_TN, other_TNH, other_lse_TN)
        ctx.save_for_backward(q_TNH, k_SKH, v_SKH, out_TNH, lse_TN)
        ctx.kernel, ctx.parts = kernel, parts
        ctx.mark_non_differentiable(lse_TN)
        return out_TNH, lse_TN

    @staticmethod
    def backward(ctx: Any, grad_TNH: Tensor, _: Tensor) -> tuple[None, None, Tensor, Tensor, Tensor]:
        q_TNH, k_SKH, v_SKH, out_TNH, lse_TN = ctx.saved_tensors
        grad_q_TNH = torch.zeros_like(q_TNH, dtype=lse_TN.dtype)
        grad_k_SKH, grad_v_SKH = torch.zeros_like(k_SKH), torch.zeros_like(v_SKH)
        for part in ctx.parts:
            given = q_TNH, part.of(k_SKH), part.of(v_SKH)
            gradients = ctx.kernel.backward(grad_TNH, *given, out_TNH, lse_TN, **part.options)
            for name, gradient, x in zip("qkv", gradients, given, strict=True):
                if (gradient.shape, gradient.dtype) != (x.shape, x.dtype):
                    raise ContractError(
                        f"backward gives {gradient.dtype} {list(gradient.shape)} for {name}, "
                        f"expected {x.dtype} {list(x.shape)}"
                    )
            grad_q_TNH += gradients[0]
            keys = slice(None) if part.keys is None else part.keys
            grad_k_SKH[keys], grad_v_SKH[keys] = gradients[1:]
        return None, None, grad_q_TNH.to(q_TNH.dtype), grad_k_SKH, grad_v_SKH
