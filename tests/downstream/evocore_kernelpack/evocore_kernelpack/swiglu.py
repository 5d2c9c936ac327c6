"""silu(gate) * up on the CPU, in blocks of tokens that stay in the cache."""

import torch

BLOCK = 64  # tokens


class SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_TF, up_TF):
        ctx.save_for_backward(gate_TF, up_TF)
        y_TF = torch.empty(gate_TF.shape)
        for y, gate, up in zip(y_TF.split(BLOCK), gate_TF.split(BLOCK), up_TF.split(BLOCK), strict=True):
            torch.sigmoid(gate, out=y).mul_(gate).mul_(up)
        return y_TF

    @staticmethod
    def backward(ctx, grad_TF):
        gate_TF, up_TF = ctx.saved_tensors
        sigmoid_TF = gate_TF.sigmoid()
        silu_TF = gate_TF * sigmoid_TF
        return grad_TF * up_TF * (sigmoid_TF + silu_TF * (1 - sigmoid_TF)), grad_TF * silu_TF


swiglu = SwiGLU.apply
