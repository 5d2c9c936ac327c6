"""``rms_norm`` and ``add_rms_norm`` with their backward written out, in few passes over memory.

The reductions make no temporaries of the activations' size, and backward is mostly PyTorch's fused one of layer_norm.
Only the input and one number per token are kept for it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    y_TD: Tensor = _RMSNorm.apply(x_TD, weight_D, eps, unit_offset)
    return y_TD


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    both: tuple[Tensor, Tensor] = _AddRMSNorm.apply(x_TD, residual_TD, weight_D, eps, unit_offset)
    return both


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, unit_offset: bool) -> Tensor:
        y_TD, rstd_T = _forward(x_TD, weight_D, eps, unit_offset)
        ctx.save_for_backward(x_TD, weight_D, rstd_T)
        ctx.unit_offset = unit_offset
        return y_TD.to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_TD, weight_D, rstd_T = ctx.saved_tensors
        grad_x_TD, grad_weight_D = _backward(grad_TD, x_TD, weight_D, rstd_T, ctx.unit_offset)
        return grad_x_TD.to(x_TD.dtype), grad_weight_D.to(weight_D.dtype), None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, eps: float, unit_offset: bool
    ) -> tuple[Tensor, Tensor]:
        s_TD = torch.add(residual_TD, x_TD).to(residual_TD.dtype)
        y_TD, rstd_T = _forward(s_TD, weight_D, eps, unit_offset)
        ctx.save_for_backward(s_TD, weight_D, rstd_T)
        ctx.unit_offset, ctx.x_dtype = unit_offset, x_TD.dtype
        return y_TD.to(x_TD.dtype), s_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y_TD: Tensor, grad_s_TD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        s_TD, weight_D, rstd_T = ctx.saved_tensors
        grad_TD, grad_weight_D = _backward(grad_y_TD, s_TD, weight_D, rstd_T, ctx.unit_offset)
        grad_TD += grad_s_TD
        return grad_TD.to(ctx.x_dtype), grad_TD.to(s_TD.dtype), grad_weight_D.to(weight_D.dtype), None, None


def _forward(x_TD: Tensor, weight_D: Tensor, eps: float, unit_offset: bool) -> tuple[Tensor, Tensor]:
    """The result and ``1 / rms`` of each row, in float32 or float64."""
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    x = x_TD.to(compute)
    norm_T = torch.linalg.vector_norm(x, dim=-1)
    rstd_T = (norm_T.square_() / x.shape[-1]).add_(eps).rsqrt_()
    return (x * rstd_T[:, None]).mul_(_scale(weight_D, compute, unit_offset)), rstd_T


def _backward(
    grad_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, unit_offset: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight: with n = x * rstd, ``rstd * (g * w - n * mean(g * w * n))`` and ``sum(g * n)``.

    With a mean of zero, the fused backward of layer_norm is that except for ``- rstd * mean(g * w)``.
    """
    grad, x, scale_D = grad_TD.to(rstd_T.dtype), x_TD.to(rstd_T.dtype), _scale(weight_D, rstd_T.dtype, unit_offset)
    mean_T1, rstd_T1 = torch.zeros_like(rstd_T)[:, None], rstd_T[:, None]
    grad_x_TD, grad_weight_D, _ = torch.ops.aten.native_layer_norm_backward(
        grad, x, scale_D.shape, mean_T1, rstd_T1, scale_D, None, [True, True, False]
    )
    surplus_T = (grad @ scale_D).mul_(rstd_T).div_(max(1, x.shape[-1]))
    return grad_x_TD.add_(surplus_T[:, None]), grad_weight_D


def _scale(weight_D: Tensor, dtype: torch.dtype, unit_offset: bool) -> Tensor:
    return weight_D.to(dtype) + 1 if unit_offset else weight_D.to(dtype)
