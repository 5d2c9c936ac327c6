"""The kernel: silu(gate) * up, with its backward by hand. evocore/ops/glu.py is its contract."""

import torch


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_TF, up_TF):
        ctx.save_for_backward(gate_TF, up_TF)
        return gate_TF * gate_TF.sigmoid() * up_TF

    @staticmethod
    def backward(ctx, grad_TF):
        gate_TF, up_TF = ctx.saved_tensors
        sigmoid_TF = gate_TF.sigmoid()
        silu_TF = gate_TF * sigmoid_TF
        return grad_TF * up_TF * (sigmoid_TF + silu_TF * (1 - sigmoid_TF)), grad_TF * silu_TF


swiglu = SwiGLU.apply
