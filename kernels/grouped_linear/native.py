"""``grouped_linear`` as one matrix product of PyTorch's per group, for any device whose host knows the groups.

Written out, backward is two products per group that write where their results belong; autograd would cut and join
every operand. If only the device knows the sizes, each call waits for it.
"""

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.ops.grouped_linear import Groups


def grouped_linear(x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
    y_RF: Tensor = _GroupedLinear.apply(x_RD, weight_EFD, groups.sizes())
    return y_RF


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EFD: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EFD)
        ctx.sizes = sizes
        return _products(x_RD, weight_EFD.mT, sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RD, weight_EFD = ctx.saved_tensors
        grad_x_RD = grad_weight_EFD = None
        if ctx.needs_input_grad[0]:
            grad_x_RD = _products(grad_RF, weight_EFD, ctx.sizes)
        if ctx.needs_input_grad[1]:
            grad_weight_EFD = torch.empty_like(weight_EFD, memory_format=torch.contiguous_format)
            for expert, rows in enumerate(_slices(ctx.sizes)):
                if ctx.sizes[expert]:
                    torch.mm(grad_RF[rows].T, x_RD[rows], out=grad_weight_EFD[expert])
                else:
                    grad_weight_EFD[expert].zero_()
        return grad_x_RD, grad_weight_EFD, None


def _products(a_RI: Tensor, b_EIO: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """``a[rows of e] @ b[e]``, and 0 in the rows of nobody."""
    out_RO = a_RI.new_empty(len(a_RI), b_EIO.shape[2])
    for expert, rows in enumerate(_slices(sizes)):
        if sizes[expert]:
            torch.mm(a_RI[rows], b_EIO[expert], out=out_RO[rows])
    out_RO[sum(sizes) :].zero_()
    return out_RO


def _slices(sizes: tuple[int, ...]) -> list[slice]:
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
