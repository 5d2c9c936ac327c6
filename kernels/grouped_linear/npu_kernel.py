"""``grouped_linear`` by the NPU's grouped matrix product, with the backward that it lacks.

Left to autograd, the operator would give no gradients and say nothing. It also wants the last group to end with the
last row: rows of nobody are lent to that group and masked.
"""

from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.grouped_linear import Groups

ROWS, INNER = 0, 2
"""Which dimension the groups cut: the rows of the result, or the sum (for the gradient of the weight)."""
ONE_OUTPUT = 2
CUMULATIVE = 0


def grouped_linear(x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
    y_RF: Tensor = _GroupedLinear.apply(x_RD, weight_EFD, groups)
    return y_RF


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EFD)
        ctx.groups = groups
        if len(x_RD) == 0:
            return x_RD.new_zeros(0, weight_EFD.shape[1])
        ends = _ends(groups, len(x_RD))
        return _mask(_product(x_RD, weight_EFD.transpose(1, 2), ends, ROWS), groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RD, weight_EFD = ctx.saved_tensors
        if len(x_RD) == 0:
            return torch.zeros_like(x_RD), torch.zeros_like(weight_EFD), None
        ends, grad_RF = _ends(ctx.groups, len(x_RD)), _mask(grad_RF, ctx.groups).contiguous()
        grad_x = _product(grad_RF, weight_EFD, ends, ROWS) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = _product(grad_RF.t(), _mask(x_RD, ctx.groups).contiguous(), ends, INNER)
        return grad_x, grad_weight, None


def _product(a: Tensor, b: Tensor, ends: Tensor, cut: int) -> Tensor:
    """``a`` has rows without gaps or, where the groups cut the sum, is the transpose of such a tensor."""
    out: list[Tensor] = torch_npu.npu_grouped_matmul(
        [a.contiguous() if cut == ROWS else a],
        [b],
        group_list=ends,
        split_item=ONE_OUTPUT if cut == ROWS else 3,
        group_type=cut,
        group_list_type=CUMULATIVE,
    )
    return out[0]


def _ends(groups: Groups, rows: int) -> Tensor:
    ends = groups.ends_E.long()
    ends[-1] = rows
    return ends


def _mask(x: Tensor, groups: Groups) -> Tensor:
    """Zero in the rows of nobody; nothing to do where the host knows that there are none."""
    if groups.host_sizes is not None and sum(groups.host_sizes) == len(x):
        return x
    nobody = torch.arange(len(x), device=x.device) >= groups.ends_E[-1]
    return x.masked_fill(nobody[:, None], 0)
