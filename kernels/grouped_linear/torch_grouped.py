"""``grouped_linear`` by PyTorch's grouped product, which reads the ends of the groups on the device.

It leaves rows of nobody as they were allocated, and on some GPUs the weight gradients of empty groups too, so both
are filled here: in place if the host knows the sizes, with a pass over the result if only the device does.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.grouped_linear.limits import ALIGNMENT
from evocore.ops.grouped_linear import Groups

grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm  # private before PyTorch 2.10


def grouped_linear(x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
    y_RF: Tensor = _GroupedLinear.apply(x_RD, weight_EFD, groups)
    return y_RF


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EFD)
        ctx.groups = groups
        return _products(x_RD, _aligned(weight_EFD).mT, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_RD, weight_EFD = ctx.saved_tensors
        grad_x_RD = grad_weight_EFD = None
        if ctx.needs_input_grad[0]:
            grad_x_RD = _products(grad_RF, _aligned(weight_EFD), ctx.groups)
        if ctx.needs_input_grad[1]:
            grad_weight_EFD = _weight_gradients(grad_RF, x_RD, ctx.groups)
        return grad_x_RD, grad_weight_EFD, None


def _products(a_RI: Tensor, b_EIO: Tensor, groups: Groups) -> Tensor:
    """``a[rows of e] @ b[e]``, and 0 in the rows of nobody."""
    if not len(a_RI):
        return a_RI.new_empty(0, b_EIO.shape[2])
    out_RO: Tensor = grouped_mm(_aligned(a_RI), b_EIO, offs=groups.ends_E)
    if groups.host_sizes is not None:
        out_RO[sum(groups.host_sizes) :].zero_()
        return out_RO
    rows_R = torch.arange(len(out_RO), device=out_RO.device)
    return out_RO.masked_fill_((rows_R >= groups.ends_E[-1])[:, None], 0)


def _weight_gradients(grad_RF: Tensor, x_RD: Tensor, groups: Groups) -> Tensor:
    """``grad[rows of e].T @ x[rows of e]``."""
    if not len(x_RD):
        return x_RD.new_zeros(len(groups.ends_E), grad_RF.shape[1], x_RD.shape[1])
    out_EFD: Tensor = grouped_mm(_aligned(grad_RF).T, _aligned(x_RD), offs=groups.ends_E)
    if groups.host_sizes is not None:
        for expert, size in enumerate(groups.host_sizes):
            if not size:
                out_EFD[expert].zero_()
        return out_EFD
    sizes_E = groups.ends_E.diff(prepend=groups.ends_E.new_zeros(1))
    return out_EFD.masked_fill_((sizes_E == 0)[:, None, None], 0)


def _aligned(x: Tensor) -> Tensor:
    """``x``, copied unless its rows are contiguous and lie where the product can read them."""
    bytes_to_rows = [x.data_ptr(), *(stride * x.element_size() for stride in x.stride()[:-1])]
    if x.stride(-1) == 1 and not any(each % ALIGNMENT for each in bytes_to_rows):
        return x
    return x.clone(memory_format=torch.contiguous_format)
