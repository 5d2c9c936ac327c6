"""``swiglu`` by the NPU's fused operator, which wants gate and up in one tensor, gate first."""

from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.swiglu.fused_input import side_by_side


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    if gate_TF.numel() == 0:
        return gate_TF * up_TF
    y_TF: Tensor = _SwiGLU.apply(gate_TF, up_TF)
    return y_TF


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        y_TF: Tensor = torch_npu.npu_swiglu(side_by_side(gate_TF, up_TF), dim=-1)
        return y_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor]:
        fused = side_by_side(*ctx.saved_tensors)
        grad_gate_TF, grad_up_TF = torch_npu.npu_swiglu_backward(grad_TF.contiguous(), fused, dim=-1).chunk(2, -1)
        return grad_gate_TF, grad_up_TF
