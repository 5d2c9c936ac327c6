"""``moe_permute`` and ``moe_unpermute`` in Triton: every kernel walks over tokens, never over rows.

A token is read once however many experts it goes to, and since each row belongs to one choice of one token, the rows
that a program writes are its own: no atomics, nothing to fill beforehand, and sums in the order of the choices.

T tokens, D hidden, K experts per token, R = T * K rows. Dropped choices have the rows from ``end`` on.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.launch import Launch
from evocore.ops.moe import MoEPermute, MoEUnpermute, Permutation, permutation_of


def moe_permute(launch: Launch) -> MoEPermute:
    """The kernel for one kind of device."""

    def permute(x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, Permutation]:
        permutation = permutation_of(experts_TK, experts)
        rows_RD: Tensor = _Permute.apply(x_TD, permutation, launch)
        return rows_RD, permutation

    return permute


def moe_unpermute(launch: Launch) -> MoEUnpermute:
    """The kernel for one kind of device."""

    def unpermute(rows_RD: Tensor, permutation: Permutation, weights_TK: Tensor) -> Tensor:
        y_TD: Tensor = _Unpermute.apply(rows_RD, weights_TK, permutation, launch)
        return y_TD

    return unpermute


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, permutation: Permutation, launch: Launch) -> Tensor:
        ctx.permutation, ctx.launch = permutation, launch
        x, width = _dense_rows(x_TD), x_TD.shape[1]
        rows_RD = x.new_empty(permutation.row_TK.numel(), width)
        _launch(_spread, launch, permutation, width, x, x.stride(0), rows_RD)
        return rows_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None, None]:
        return _sums(grad_RD, None, ctx.permutation, ctx.launch), None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weights_TK: Tensor, permutation: Permutation, launch: Launch) -> Tensor:
        ctx.save_for_backward(rows_RD, weights_TK)
        ctx.permutation, ctx.launch = permutation, launch
        return _sums(rows_RD, weights_TK.contiguous(), permutation, launch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows_RD, weights_TK = ctx.saved_tensors
        rows, grad, weights = _dense_rows(rows_RD), _dense_rows(grad_TD), weights_TK.contiguous()
        width = rows.shape[1]
        grad_rows_RD = rows.new_empty(rows.shape) if ctx.needs_input_grad[0] else None
        grad_weights_TK = torch.empty_like(weights) if ctx.needs_input_grad[1] else None
        top_k_block = triton.next_power_of_2(weights.shape[1])
        arguments = (grad, grad.stride(0), rows, rows.stride(0), weights, grad_rows_RD, grad_weights_TK, top_k_block)
        _launch(_unpermute_backward, ctx.launch, ctx.permutation, width, *arguments)
        return grad_rows_RD, grad_weights_TK, None, None


def _sums(rows_RD: Tensor, weights_TK: Tensor | None, permutation: Permutation, launch: Launch) -> Tensor:
    """The rows of each token's choices, weighted and added up in their order; dropped ones do not count."""
    rows, (tokens, width) = _dense_rows(rows_RD), (len(permutation.row_TK), rows_RD.shape[1])
    y_TD = rows.new_empty(tokens, width)
    _launch(_gather, launch, permutation, width, rows, rows.stride(0), weights_TK, y_TD)
    return y_TD


def _launch(kernel: Any, launch: Launch, permutation: Permutation, width: int, *arguments: Any) -> None:
    """Run ``kernel`` over all tokens, with rows cut into columns where one program cannot hold them."""
    (tokens, top_k), elements = permutation.row_TK.shape, launch.elements
    if not tokens:
        return
    columns = min(triton.next_power_of_2(width), elements)
    block = elements // columns
    programs = launch.programs(permutation.row_TK.device, triton.cdiv(tokens, block))
    end = permutation.groups.ends_E[-1:]
    kernel[(programs,)](
        permutation.row_TK, end, tokens, width, *arguments, top_k, block, columns, num_warps=launch.warps(elements)
    )


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


@triton.jit
def _spread(
    row_ptr,
    end_ptr,
    tokens,
    width,
    x_ptr,
    x_stride,
    rows_ptr,
    TOP_K: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``rows[row of (t, k)] = x[t]``, and 0 for dropped choices."""
    end = tl.load(end_ptr)
    for task in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        token = task * TOKENS + tl.arange(0, TOKENS)
        inside = token < tokens
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            mask = inside[:, None] & (column < width)[None, :]
            x = tl.load(x_ptr + token.to(tl.int64)[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
            for k in tl.static_range(TOP_K):
                row = tl.load(row_ptr + token * TOP_K + k, mask=inside, other=0)
                to_ptr = rows_ptr + row.to(tl.int64)[:, None] * width + column[None, :]
                tl.store(to_ptr, tl.where((row < end)[:, None], x, 0.0), mask=mask)


@triton.jit
def _gather(
    row_ptr,
    end_ptr,
    tokens,
    width,
    rows_ptr,
    rows_stride,
    weights_ptr,
    y_ptr,
    TOP_K: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """``y[t] = sum over k of weights[t, k] * rows[row of (t, k)]``; without weights, of the rows alone."""
    end = tl.load(end_ptr)
    for task in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        token = task * TOKENS + tl.arange(0, TOKENS)
        inside = token < tokens
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            within = (column < width)[None, :]
            y = tl.zeros((TOKENS, COLUMNS), tl.float32)
            for k in tl.static_range(TOP_K):
                row = tl.load(row_ptr + token * TOP_K + k, mask=inside, other=0)
                kept = inside & (row < end)
                from_ptr = rows_ptr + row.to(tl.int64)[:, None] * rows_stride + column[None, :]
                part = tl.load(from_ptr, mask=kept[:, None] & within, other=0.0).to(tl.float32)
                if weights_ptr is not None:
                    weight = tl.load(weights_ptr + token * TOP_K + k, mask=kept, other=0.0)
                    part *= weight.to(tl.float32)[:, None]
                y += part
            y_at = y_ptr + token.to(tl.int64)[:, None] * width + column[None, :]
            tl.store(y_at, y.to(y_ptr.dtype.element_ty), mask=inside[:, None] & within)


@triton.jit
def _unpermute_backward(
    row_ptr,
    end_ptr,
    tokens,
    width,
    grad_ptr,
    grad_stride,
    rows_ptr,
    rows_stride,
    weights_ptr,
    grad_rows_ptr,
    grad_weights_ptr,
    TOP_K_BLOCK: tl.constexpr,
    TOP_K: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Both gradients of ``_gather`` from one reading of its own: each is left out if its pointer is None."""
    end = tl.load(end_ptr)
    choice = tl.arange(0, TOP_K_BLOCK)
    for task in range(tl.program_id(0), tl.cdiv(tokens, TOKENS), tl.num_programs(0)):
        token = task * TOKENS + tl.arange(0, TOKENS)
        inside = token < tokens
        grad_weights = tl.zeros((TOKENS, TOP_K_BLOCK), tl.float32)
        for start in range(0, width, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            within = (column < width)[None, :]
            grad_at = grad_ptr + token.to(tl.int64)[:, None] * grad_stride + column[None, :]
            grad = tl.load(grad_at, mask=inside[:, None] & within, other=0.0).to(tl.float32)
            for k in tl.static_range(TOP_K):
                row = tl.load(row_ptr + token * TOP_K + k, mask=inside, other=0).to(tl.int64)
                kept = inside & (row < end)
                if grad_rows_ptr is not None:
                    weight = tl.load(weights_ptr + token * TOP_K + k, mask=kept, other=0.0).to(tl.float32)
                    grad_row = tl.where(kept[:, None], weight[:, None] * grad, 0.0)
                    to_ptr = grad_rows_ptr + row[:, None] * width + column[None, :]
                    tl.store(to_ptr, grad_row.to(grad_rows_ptr.dtype.element_ty), mask=inside[:, None] & within)
                if grad_weights_ptr is not None:
                    from_ptr = rows_ptr + row[:, None] * rows_stride + column[None, :]
                    part = tl.load(from_ptr, mask=kept[:, None] & within, other=0.0).to(tl.float32)
                    dot = tl.where(kept, tl.sum(part * grad, 1), 0.0)
                    grad_weights += tl.where(choice[None, :] == k, dot[:, None], 0.0)
        if grad_weights_ptr is not None:
            to_ptr = grad_weights_ptr + token[:, None] * TOP_K + choice[None, :]
            mask = inside[:, None] & (choice < TOP_K)[None, :]
            tl.store(to_ptr, grad_weights.to(grad_weights_ptr.dtype.element_ty), mask=mask)
