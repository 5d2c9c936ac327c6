"""Exchanges between the ranks of a group that gradients pass through.

Each of them is a pair: what a rank does to an activation, and what it does in return to the gradient. Activations are
exchanged along dimension 0 unless the name says otherwise. A group of one rank leaves everything as it is.

Shapes: T tokens, F features, N heads, H head size, W ranks of the group.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.collectives import Handle
from evocore.parallel.groups import Group


def copy(x: Tensor, group: Group) -> Tensor:
    """What every rank has, for ranks that each compute another part of the result: gradients are summed."""
    return x if group.size == 1 else _Copy.apply(x, group)


def reduce_(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks, for ranks that all go on in the same way: gradients are as they are.

    ``x`` itself becomes the sum. It is contiguous, and its values are needed by nothing else, nor by the gradient of
    the operation that computed it.
    """
    return x if group.size == 1 else _Reduce.apply(x, group)


def gather(x: Tensor, group: Group) -> Tensor:
    """The ranks' parts in one, for ranks that each compute another part of the result.

    Gradients of each part are summed over ranks. ``[T, ...] -> [W T, ...]``.
    """
    return x if group.size == 1 else _Gather.apply(x, group)


def scatter_sum(x: Tensor, group: Group) -> Tensor:
    """This rank's part of the sum over ranks; gradients of the parts are gathered. ``[W T, ...] -> [T, ...]``."""
    return x if group.size == 1 else _ScatterSum.apply(x, group)


def split(x: Tensor, group: Group) -> Tensor:
    """This rank's part of what every rank has; gradients of the parts are gathered. ``[W T, ...] -> [T, ...]``."""
    return x if group.size == 1 else _Split.apply(x, group)


def join(x: Tensor, group: Group) -> Tensor:
    """``[T, ...] -> [W T, ...]``, for ranks that all go on in the same way: each takes its part of the gradient."""
    return x if group.size == 1 else _Join.apply(x, group)


def join_columns(x_TF: Tensor, group: Group) -> Tensor:
    """``[T, F] -> [T, W F]``, for ranks that all go on in the same way: each takes its part of the gradient."""
    return x_TF if group.size == 1 else _JoinColumns.apply(x_TF, group)


def heads_from_tokens(x: Tensor, group: Group) -> Tensor:
    """Some of the heads of all tokens, from all heads of some of the tokens: ``[T / W, N, H] -> [T, N / W, H]``.

    Tokens and heads are divided in rank order; W divides N.
    """
    return x if group.size == 1 else _HeadsFromTokens.apply(x, group)


def tokens_from_heads(x: Tensor, group: Group) -> Tensor:
    """The inverse of ``heads_from_tokens``: ``[T, N / W, H] -> [T / W, N, H]``; W divides T."""
    return x if group.size == 1 else _TokensFromHeads.apply(x, group)


# --- the exchanges without gradients, for functions that compute while one is under way ---------------------------


def start_gather(x: Tensor, group: Group) -> tuple[Tensor, Handle]:
    """``gather`` under way: the result may be read once the handle was waited for."""
    whole = x.new_empty(group.size * x.shape[0], *x.shape[1:])
    return whole, group.all_gather(whole, x, asynchronous=True)


def start_scatter_sum(x: Tensor, group: Group) -> tuple[Tensor, Handle]:
    """``scatter_sum`` under way: until the handle was waited for, ``x`` stays as it is."""
    part = x.new_empty(x.shape[0] // group.size, *x.shape[1:])
    return part, group.reduce_scatter(part, x, asynchronous=True)


def gathered(x: Tensor, group: Group) -> Tensor:
    """``[T, ...] -> [W T, ...]``."""
    whole = x.new_empty(group.size * x.shape[0], *x.shape[1:])
    group.all_gather(whole, x)
    return whole


def scattered_sum(x: Tensor, group: Group) -> Tensor:
    """``[W T, ...] -> [T, ...]``."""
    part = x.new_empty(x.shape[0] // group.size, *x.shape[1:])
    group.reduce_scatter(part, x)
    return part


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)  # others may be given the same gradient
        ctx.group.all_reduce(total)
        return total, None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        group.all_reduce(x)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return scattered_sum(grad, ctx.group), None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return scattered_sum(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered(grad, ctx.group), None


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        assert len(x) % group.size == 0, (x.shape, group)
        return x.chunk(group.size)[group.rank].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return gathered(grad.contiguous(), ctx.group), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.group.size)[ctx.group.rank], None


class _JoinColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TF: Tensor, group: Group) -> Tensor:
        ctx.group = group
        all_WTF: Tensor = gathered(x_TF, group).unflatten(0, (group.size, -1))
        return all_WTF.transpose(0, 1).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.chunk(ctx.group.size, dim=1)[ctx.group.rank], None


class _HeadsFromTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _heads_from_tokens(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _tokens_from_heads(grad, ctx.group), None


class _TokensFromHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _tokens_from_heads(x, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _heads_from_tokens(grad, ctx.group), None


def _heads_from_tokens(x: Tensor, group: Group) -> Tensor:
    tokens, heads, size = x.shape
    assert heads % group.size == 0, (x.shape, group)
    # What goes to one rank must lie together; what comes from it are the tokens that follow those of the rank before.
    by_rank = x.view(tokens, group.size, heads // group.size, size).transpose(0, 1).contiguous()
    received = torch.empty_like(by_rank)
    group.all_to_all(received, by_rank)
    return received.flatten(0, 1)


def _tokens_from_heads(x: Tensor, group: Group) -> Tensor:
    tokens, heads, size = x.shape
    assert tokens % group.size == 0, (x.shape, group)
    by_rank = x.contiguous().view(group.size, tokens // group.size, heads, size)
    received = torch.empty_like(by_rank)
    group.all_to_all(received, by_rank)
    return received.transpose(0, 1).flatten(1, 2)
