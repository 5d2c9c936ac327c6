"""``attention`` and ``attention_block`` by the FlashAttention 2 inside PyTorch: all documents in one launch.

These are the operators below ``torch.nn.attention.varlen``. That function has changed from release to release, and
hides the log-sum-exp that a ring step needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.utils.deterministic
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.attention.packed import longest, nothing, reach, readable
from evocore.kernels.attention.statistics import from_library, nothing_seen, to_library
from evocore.ops.attention import Attention, AttentionBlock, CuSeqlens


class _Terms(NamedTuple):
    """The options of a call, and whether its backward adds up in a fixed order."""

    q_documents: CuSeqlens
    k_documents: CuSeqlens
    causal: bool
    window: int | None
    scale: float | None
    deterministic: bool


def attention(deterministic: bool) -> Attention:
    """The kernel; if ``deterministic``, backward adds up in a fixed order, slower and with more memory."""

    def run(
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
        zeros_TNH = nothing(q_TNH, k_SKH, v_SKH)
        if zeros_TNH is not None:
            return zeros_TNH
        terms = _Terms(q_documents, k_documents, causal, window, scale, deterministic)
        out_TNH: Tensor = _Attention.apply(q_TNH, k_SKH, v_SKH, terms)
        return out_TNH

    return run


def attention_block(deterministic: bool) -> AttentionBlock:
    """The pair; ``deterministic`` as in ``attention``."""

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
        assert softcap is None, "refused by supports"
        zeros_TNH = nothing(q_TNH, k_SKH, v_SKH)
        if zeros_TNH is not None:
            return zeros_TNH, nothing_seen(q_TNH)
        terms = _Terms(q_documents, k_documents, causal, window, scale, deterministic)
        out_TNH, lse_NT = _forward(readable(q_TNH), readable(k_SKH), readable(v_SKH), terms)
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
        assert softcap is None, "refused by supports"
        if nothing(q_TNH, k_SKH, v_SKH) is not None:
            return torch.zeros_like(q_TNH), torch.zeros_like(k_SKH), torch.zeros_like(v_SKH)
        terms = _Terms(q_documents, k_documents, causal, window, scale, deterministic)
        q, k, v = readable(q_TNH), readable(k_SKH), readable(v_SKH)
        return _backward(grad_TNH, q, k, v, out_TNH, to_library(lse_TN), terms)

    return AttentionBlock(forward, backward)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, terms: _Terms) -> Tensor:
        q, k, v = readable(q_TNH), readable(k_SKH), readable(v_SKH)
        out_TNH, lse_NT = _forward(q, k, v, terms)
        ctx.save_for_backward(q, k, v, out_TNH, lse_NT)
        ctx.terms = terms
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out_TNH, lse_NT = ctx.saved_tensors
        return *_backward(grad_TNH, q, k, v, out_TNH, lse_NT, ctx.terms), None


def _forward(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, terms: _Terms) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, ``[N, T]``."""
    left, right = reach(terms.causal, terms.window)
    out_TNH, lse_NT, *_ = torch.ops.aten._flash_attention_forward(
        q_TNH,
        k_SKH,
        v_SKH,
        terms.q_documents.device,
        terms.k_documents.device,
        longest(terms.q_documents),
        longest(terms.k_documents),
        0.0,  # dropout
        terms.causal,
        False,  # no mask for debugging
        scale=terms.scale,
        window_size_left=left,
        window_size_right=right,
    )
    return out_TNH, lse_NT


def _backward(
    grad_TNH: Tensor, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, out_TNH: Tensor, lse_NT: Tensor, terms: _Terms
) -> tuple[Tensor, Tensor, Tensor]:
    left, right = reach(terms.causal, terms.window)
    unused = q_TNH.new_empty(0)  # states of the random numbers of a dropout
    with _in_fixed_order() if terms.deterministic else nullcontext():
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
            readable(grad_TNH),
            q_TNH,
            k_SKH,
            v_SKH,
            readable(out_TNH),
            lse_NT,
            terms.q_documents.device,
            terms.k_documents.device,
            longest(terms.q_documents),
            longest(terms.k_documents),
            0.0,
            terms.causal,
            unused,
            unused,
            scale=terms.scale,
            window_size_left=left,
            window_size_right=right,
        )
    return grads


@contextmanager
def _in_fixed_order() -> Iterator[None]:
    """The operator asks PyTorch's switch, not its caller; filling memory, which the switch does too, is left out."""
    filling: Any = torch.utils.deterministic  # its attribute is a property, which type checkers do not see
    fills, only_warns = filling.fill_uninitialized_memory, torch.is_deterministic_algorithms_warn_only_enabled()
    on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    filling.fill_uninitialized_memory = False
    try:
        yield
    finally:
        filling.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(on, warn_only=only_warns)
