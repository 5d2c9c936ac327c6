"""``swiglu`` with its backward written out, to keep only its two inputs.

Autograd would keep the activation as well, half as much again, and in low precision all three in float32. The price
is one more activation in backward.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    gated_TF: Tensor = _SwiGLU.apply(gate_TF, up_TF)
    return gated_TF


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_TF, up_TF)
        compute = torch.promote_types(gate_TF.dtype, torch.float32)
        return F.silu(gate_TF.to(compute)).mul_(up_TF).to(gate_TF.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF = ctx.saved_tensors
        compute = torch.promote_types(gate_TF.dtype, torch.float32)
        gate, grad = gate_TF.to(compute), grad_TF.to(compute)
        grad_gate = grad * up_TF
        torch.ops.aten.silu_backward.grad_input(grad_gate, gate, grad_input=grad_gate)
        return grad_gate.to(gate_TF.dtype), F.silu(gate).mul_(grad).to(up_TF.dtype)
