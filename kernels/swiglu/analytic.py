"""``swiglu`` with its backward written out: one sigmoid in all, the rest are products.

In full precision the sigmoid is kept, which costs no more memory than the activation that autograd would keep; in low
precision it is computed again, because rounding it would lose what the contract asks for.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    y_TF: Tensor = _SwiGLU.apply(gate_TF, up_TF)
    return y_TF


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        compute = torch.promote_types(gate_TF.dtype, torch.float32)
        gate, up = gate_TF.to(compute), up_TF.to(compute)
        sigmoid = gate.sigmoid()
        ctx.save_for_backward(gate_TF, up_TF, sigmoid if gate_TF.dtype == compute else None)
        return torch.mul(gate, sigmoid).mul_(up).to(gate_TF.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor]:
        gate_TF, up_TF, sigmoid = ctx.saved_tensors
        compute = torch.promote_types(gate_TF.dtype, torch.float32)
        gate, up, grad = gate_TF.to(compute), up_TF.to(compute), grad_TF.to(compute)
        sigmoid = gate.sigmoid() if sigmoid is None else sigmoid
        silu = gate * sigmoid
        # silu' = sigmoid + silu * (1 - sigmoid)
        grad_gate = (1 - sigmoid).mul_(silu).add_(sigmoid).mul_(up).mul_(grad)
        return grad_gate.to(gate_TF.dtype), silu.mul_(grad).to(up_TF.dtype)
