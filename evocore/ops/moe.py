"""Contracts of ``moe_permute`` and ``moe_unpermute``: tokens to rows sorted by expert, and back.

Shapes: T tokens, D hidden, K experts per token, E experts, R = T * K rows.

R is fixed whatever the routing decides, so that no kernel waits for the device: a choice that was dropped becomes a
row of nobody, behind all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from evocore.ops.grouped_linear import Groups
from evocore.ops.kernel import Request


@dataclass(frozen=True, eq=False)
class Permutation:
    """Where each choice of each token went; rows of one expert keep the order of their tokens.

    Attributes:
        row_TK: int32 row of each choice.
        source_R: int32, its inverse: row r came from choice ``source_R[r]`` of the flattened ``[T * K]`` ones.
        groups: the rows of each expert; those of dropped choices come last and belong to nobody.
    """

    row_TK: Tensor
    source_R: Tensor
    groups: Groups


def permutation_of(experts_TK: Tensor, experts: int) -> Permutation:
    """Sort choices by expert, stably, in plain PyTorch and without waiting for the device.

    Args:
        experts_TK: int64 expert of each choice, -1 if it was dropped.
        experts: E.
    """
    # The narrowest keys sort fastest: a radix sort takes a pass for each byte of them.
    narrow = next(dtype for dtype in (torch.uint8, torch.int16, torch.int64) if experts <= torch.iinfo(dtype).max)
    flat = experts_TK.flatten()
    keys, order = flat.where(flat >= 0, experts).to(narrow).sort(stable=True)
    row = torch.empty_like(order, dtype=torch.int32)
    row.scatter_(0, order, torch.arange(len(order), dtype=torch.int32, device=order.device))
    bounds = torch.arange(1, experts + 1, dtype=narrow, device=keys.device)
    ends = torch.searchsorted(keys, bounds, out_int32=True)  # the first row of the next expert
    return Permutation(row.view(experts_TK.shape), order.int(), Groups(ends))


class MoEPermute(Protocol):
    """``rows[row of choice (t, k)] = x[t]``.

    Args:
        x_TD: any strides; not modified.
        experts_TK: int64 in ``[0, E)``, or -1 for a choice that was dropped: its row is 0.
        experts: E.

    Returns:
        ``(rows_RD, permutation)``. Differentiable in ``x_TD``: the gradients of a token's rows add up, in float32, in
        the order of its choices; those of dropped rows do not count.
    """

    def __call__(self, x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, Permutation]: ...


class MoEUnpermute(Protocol):
    """``y[t] = sum over k of weights[t, k] * rows[row of (t, k)]``.

    Args:
        rows_RD: any strides; not modified.
        permutation: what ``moe_permute`` returned.
        weights_TK: weight of each choice, in the dtype of ``rows_RD`` or float32; dropped choices count as 0.

    Returns:
        ``[T, D]`` in the dtype of ``rows_RD``, added up in float32 in the order of the choices and rounded once.
        Differentiable in ``rows_RD`` and ``weights_TK``; both gradients of a dropped choice are 0.
    """

    def __call__(self, rows_RD: Tensor, permutation: Permutation, weights_TK: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class MoEPermuteRequest(Request):
    """``width`` is D, ``top_k`` is K, ``experts`` is E."""

    width: int
    top_k: int
    experts: int

    @property
    def op(self) -> str:
        return "moe_permute"


@dataclass(frozen=True)
class MoEUnpermuteRequest(Request):
    """As for ``moe_permute``."""

    width: int
    top_k: int
    experts: int

    @property
    def op(self) -> str:
        return "moe_unpermute"
