"""``rms_norm`` and ``add_rms_norm`` by the NPU's fused operators.

The fused sum-and-norm has no backward of its own (it raises): its sum is what the norm's backward needs, so the two
are joined here.
"""

from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    if x_TD.numel() == 0:
        return x_TD * weight_D.to(x_TD.dtype)
    y_TD: Tensor = torch_npu.npu_rms_norm(x_TD, _scale(weight_D, x_TD, unit_offset), eps)[0]
    return y_TD


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    scale_D = _scale(weight_D, residual_TD, unit_offset)
    if x_TD.numel() and x_TD.dtype == residual_TD.dtype == scale_D.dtype:
        both: tuple[Tensor, Tensor] = _AddRMSNorm.apply(x_TD, residual_TD, scale_D, eps)
        return both
    s_TD = residual_TD + x_TD
    return rms_norm(s_TD, weight_D, eps=eps, unit_offset=unit_offset).to(x_TD.dtype), s_TD


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, residual_TD: Tensor, scale_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        y_TD, rstd_T1, s_TD = torch_npu.npu_add_rms_norm(x_TD, residual_TD, scale_D, eps)
        ctx.save_for_backward(s_TD, scale_D, rstd_T1)
        ctx.set_materialize_grads(False)
        return y_TD, s_TD

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y_TD: Tensor | None, grad_s_TD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        s_TD, scale_D, rstd_T1 = ctx.saved_tensors
        if grad_y_TD is None:
            return grad_s_TD, grad_s_TD, None, None
        grad_TD, grad_scale_D = torch_npu.npu_rms_norm_backward(grad_y_TD.contiguous(), s_TD, scale_D, rstd_T1)
        if grad_s_TD is not None:
            grad_TD = grad_TD + grad_s_TD
        return grad_TD, grad_TD, grad_scale_D.to(scale_D.dtype), None


def _scale(weight_D: Tensor, x_TD: Tensor, unit_offset: bool) -> Tensor:
    """The factor in a dtype that the operator pairs with that of the activations: the same, or float32."""
    wide = x_TD.dtype == torch.float32 or weight_D.dtype != x_TD.dtype or unit_offset
    scale_D = weight_D.float() if wide else weight_D
    return scale_D + 1 if unit_offset else scale_D
