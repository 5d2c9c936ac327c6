"""A plug-in whose swiglu is right in forward and wrong by one percent in one of its gradients."""

import torch

from evocore import hookimpl
from evocore.config import load_values
from evocore.ops.kernel import Kernel
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.run import train


class _WrongSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate_TF, up_TF):
        ctx.save_for_backward(gate_TF, up_TF)
        return torch.nn.functional.silu(gate_TF) * up_TF

    @staticmethod
    def backward(ctx, grad_TF):
        gate_TF, up_TF = ctx.saved_tensors
        sigmoid = gate_TF.sigmoid()
        slope = sigmoid * (1 + gate_TF * (1 - sigmoid))
        return grad_TF * up_TF * slope * 1.01, grad_TF * gate_TF * sigmoid


def swiglu(gate_TF, up_TF):
    return _WrongSwiGLU.apply(gate_TF, up_TF)


@hookimpl
def evocore_kernels():
    return [Kernel("swiglu", "wrong", frozenset({"cpu"}), "shadow_plugin:swiglu", frozenset({torch.float32}))]


def run_with_plugin(config, plugin, observer):
    """Train with this plug-in beside the installed ones; the run's folder."""
    registry = load_plugins()
    registry.register(plugin, "shadow_plugin")
    return train(load_values(config), registry, LaunchEnvironment(), observers=[observer])[1]
