"""``geglu`` by the NPU's fused operator, told that the left half of its input is the gate."""

from typing import Any

import torch
import torch_npu
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.swiglu.fused_input import side_by_side

_CODES = {"none": 0, "tanh": 1}


def geglu(gate_TF: Tensor, up_TF: Tensor, *, approximate: str = "tanh") -> Tensor:
    if gate_TF.numel() == 0:
        return gate_TF * up_TF
    y_TF: Tensor = _GeGLU.apply(gate_TF, up_TF, _CODES[approximate])
    return y_TF


class _GeGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, code: int) -> Tensor:
        y_TF, gelu_TF = torch_npu.npu_geglu(
            side_by_side(gate_TF, up_TF), dim=-1, approximate=code, activate_left=True
        )
        ctx.save_for_backward(gate_TF, up_TF, gelu_TF)
        ctx.code = code
        return y_TF  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor, None]:
        gate_TF, up_TF, gelu_TF = ctx.saved_tensors
        fused = side_by_side(gate_TF, up_TF)
        grad = torch_npu.npu_geglu_grad(
            grad_TF.contiguous(), fused, gelu_TF, dim=-1, approximate=ctx.code, activate_left=True
        )
        grad_gate_TF, grad_up_TF = grad.chunk(2, -1)
        return grad_gate_TF, grad_up_TF, None
