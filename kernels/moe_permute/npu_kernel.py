"""``moe_permute`` and ``moe_unpermute`` by the NPU's fused operators, which take bfloat16.

The sort happens in the operator. It knows no dropped choices: they are counted as an expert behind all others, and
their rows and weights are masked.
"""

from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.grouped_linear import Groups
from evocore.ops.moe import Permutation


def moe_permute(x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, Permutation]:
    indices_TK = experts_TK.where(experts_TK >= 0, experts)
    if x_TD.numel() == 0:
        row_R = torch.arange(experts_TK.numel(), dtype=torch.int32, device=x_TD.device)
        return x_TD.repeat_interleave(experts_TK.shape[1], 0), _permutation(row_R, indices_TK, experts)
    rows_RD, row_R = torch_npu.npu_moe_token_permute(x_TD.contiguous(), indices_TK)
    permutation = _permutation(row_R, indices_TK, experts)
    return rows_RD.masked_fill(_nobody(rows_RD, permutation), 0), permutation


def moe_unpermute(rows_RD: Tensor, permutation: Permutation, weights_TK: Tensor) -> Tensor:
    y_TD: Tensor = _Unpermute.apply(rows_RD, weights_TK, permutation)
    return y_TD


class _Unpermute(torch.autograd.Function):
    """The operator forward; backward apart, since the operator rounds the gradient of the weights to bfloat16."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, weights_TK: Tensor, permutation: Permutation) -> Tensor:
        ctx.save_for_backward(rows_RD, weights_TK)
        ctx.permutation = permutation
        if rows_RD.numel() == 0:
            return rows_RD.new_zeros(len(weights_TK), rows_RD.shape[1])
        dropped_TK = permutation.row_TK >= permutation.groups.ends_E[-1]
        y_TD: Tensor = torch_npu.npu_moe_token_unpermute(
            rows_RD.masked_fill(_nobody(rows_RD, permutation), 0),  # times 0, what stands there could still be nan
            permutation.row_TK.flatten(),
            probs=weights_TK.masked_fill(dropped_TK, 0).to(rows_RD.dtype),
        )
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None]:
        (rows_RD, weights_TK), permutation = ctx.saved_tensors, ctx.permutation
        source_R, top_k = permutation.source_R.long(), weights_TK.shape[1]
        grad_RD = grad_TD.float()[source_R // max(1, top_k)]
        nobody_R1 = _nobody(rows_RD, permutation)
        grad_rows_RD = (grad_RD * weights_TK.flatten().float()[source_R][:, None]).masked_fill(nobody_R1, 0)
        grad_weight_R = (grad_RD * rows_RD.float()).masked_fill(nobody_R1, 0).sum(-1)
        grad_weights_TK = grad_weight_R[permutation.row_TK.long()]
        return grad_rows_RD.to(rows_RD.dtype), grad_weights_TK.to(weights_TK.dtype), None


def _nobody(rows_RD: Tensor, permutation: Permutation) -> Tensor:
    """``[R, 1]``, the rows of dropped choices."""
    return (torch.arange(len(rows_RD), device=rows_RD.device) >= permutation.groups.ends_E[-1])[:, None]


def _permutation(row_R: Tensor, indices_TK: Tensor, experts: int) -> Permutation:
    source_R = torch.empty_like(row_R)
    source_R[row_R.long()] = torch.arange(len(row_R), dtype=row_R.dtype, device=row_R.device)
    sorted_R = indices_TK.flatten()[source_R.long()]
    ends_E = torch.searchsorted(sorted_R, torch.arange(1, experts + 1, device=sorted_R.device))
    return Permutation(row_R.view(indices_TK.shape), source_R, Groups(ends_E.int()))
