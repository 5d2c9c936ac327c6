"""``moe_permute`` and ``moe_unpermute`` in PyTorch's own gathers and bags, for a host that may look at the routing.

A token's rows are a bag of an embedding: one pass adds them up in the order of its choices, where the gradient of a
gather would scatter them one by one. How many choices were dropped is asked of the device: not for one that would
stall.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.moe import Permutation, permutation_of


def moe_permute(x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, Permutation]:
    permutation = permutation_of(experts_TK, experts)
    rows_RD: Tensor = _Permute.apply(x_TD, permutation, int(permutation.groups.ends_E[-1]))
    return rows_RD, permutation


def moe_unpermute(rows_RD: Tensor, permutation: Permutation, weights_TK: Tensor) -> Tensor:
    kept = int(permutation.groups.ends_E[-1])
    y_TD: Tensor = _Unpermute.apply(rows_RD, weights_TK, permutation, kept)
    return y_TD


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, permutation: Permutation, kept: int) -> Tensor:
        ctx.permutation, ctx.kept = permutation, kept
        return _copies(x_TD, permutation, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        return _sums(grad_RD, ctx.permutation, ctx.kept, None), None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weights_TK: Tensor, permutation: Permutation, kept: int) -> Tensor:
        ctx.save_for_backward(rows_RD, weights_TK)
        ctx.permutation, ctx.kept = permutation, kept
        return _sums(rows_RD, permutation, kept, weights_TK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows_RD, weights_TK = ctx.saved_tensors
        compute = torch.promote_types(rows_RD.dtype, torch.float32)
        grad_RD = _copies(grad_TD.to(compute), ctx.permutation, ctx.kept)
        grad_rows_RD = grad_weights_TK = None
        if ctx.needs_input_grad[1]:
            dots_R = torch.linalg.vecdot(rows_RD.to(compute), grad_RD)
            dots_R[ctx.kept :].zero_()
            dots_TK = dots_R.index_select(0, ctx.permutation.row_TK.flatten()).view(weights_TK.shape)
            grad_weights_TK = dots_TK.to(weights_TK.dtype)
        if ctx.needs_input_grad[0]:
            weights_R = weights_TK.flatten().index_select(0, ctx.permutation.source_R).to(compute)
            grad_rows_RD = grad_RD.mul_(weights_R[:, None])
            grad_rows_RD[ctx.kept :].zero_()  # a weight that is not finite makes no 0 of them
            grad_rows_RD = grad_rows_RD.to(rows_RD.dtype)
        return grad_rows_RD, grad_weights_TK, None, None


def _copies(x_TD: Tensor, permutation: Permutation, kept: int) -> Tensor:
    """Each token in the rows of its choices, and 0 in those of dropped ones."""
    rows_RD = x_TD.index_select(0, permutation.source_R // permutation.row_TK.shape[1])
    rows_RD[kept:].zero_()
    return rows_RD


def _sums(rows_RD: Tensor, permutation: Permutation, kept: int, weights_TK: Tensor | None) -> Tensor:
    """The rows of each token's choices, weighted and added up in their order; dropped ones do not count."""
    tokens, top_k = permutation.row_TK.shape
    compute = torch.promote_types(rows_RD.dtype, torch.float32)
    # All dropped choices become the first row of nobody, which the bags are told to leave out.
    ignored = kept if kept < len(rows_RD) else None
    index_R = permutation.row_TK.flatten().clamp(max=kept)
    starts_T = torch.arange(0, tokens * top_k, top_k, dtype=index_R.dtype, device=index_R.device)
    weights_R = None if weights_TK is None else weights_TK.flatten().to(compute)
    y_TD = torch.nn.functional.embedding_bag(
        index_R, rows_RD.to(compute), starts_T, mode="sum", per_sample_weights=weights_R, padding_idx=ignored
    )
    return y_TD.to(rows_RD.dtype)
