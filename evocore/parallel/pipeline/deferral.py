"""Gradients of weights that are not computed in backward, but when the schedule has time for them.

Backward of a linear layer is two products: one for the gradient of its input, for which the stage before waits, and
one for that of its weight, for which nobody does. Functions that leave the second one here are run once, as always,
with whatever they exchange; nothing has to be taken out of PyTorch's graph.

Shapes: T tokens, D inputs, F outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evocore.nn.layers import Linear
from evocore.nn.projecting import Projecting

Work = Callable[[], None]


class WeightGradients:
    """What backward leaves undone, if it is asked to leave something.

    Attributes:
        deliver: takes one micro-batch's gradient of a parameter, ``(parameter, gradient)``; set before the first
            backward.
    """

    deliver: Callable[[nn.Parameter, Tensor], None]

    def __init__(self) -> None:
        self._put_off: list[Work] | None = None

    def put_off(self) -> None:
        """From now on ``do`` only takes notes."""
        assert self._put_off is None
        self._put_off = []

    def take(self) -> list[Work]:
        """What was put off, to be done later; from now on ``do`` does it again."""
        assert self._put_off is not None
        works, self._put_off = self._put_off, None
        return works

    def do(self, work: Work) -> None:
        """Do it now, or later."""
        if self._put_off is None:
            work()
        else:
            self._put_off.append(work)


class DeferredProjections:
    """``fan_out`` and ``fan_in`` of layers with whole weights, whose gradients may be put off."""

    def __init__(self, gradients: WeightGradients) -> None:
        self._gradients = gradients

    def fan_out(self, x_TD: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
        return products(x_TD, [layer.weight for layer in layers], [layer.bias for layer in layers], self._gradients)

    def fan_in(self, x_TF: Tensor, layer: Linear) -> Tensor:
        (y_TD,) = products(x_TF, [layer.weight], [layer.bias], self._gradients)
        return y_TD


def products(
    x_TD: Tensor, weights: Sequence[nn.Parameter], biases: Sequence[Tensor | None], gradients: WeightGradients
) -> list[Tensor]:
    """``[x @ weight.T + bias, ...]``; the gradients of the weights do not come by way of autograd.

    Two functions make one differentiable step, so that recomputation, which stops at the last kept tensor, skips a
    last product: the first keeps the input, the second computes.
    """
    if not torch.is_grad_enabled():
        return [F.linear(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    shapes_TF = _Inputs.apply(x_TD, gradients, weights, *weights, *biases)
    return list(_Products.apply(x_TD.detach(), weights, biases, *shapes_TF))


class _Inputs(torch.autograd.Function):
    """Returns one tensor without memory for each layer, in the shape of its output, to receive its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, gradients: WeightGradients, weights: Sequence[Tensor], *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.gradients, ctx.weights = gradients, weights
        ctx.save_for_backward(x_TD)
        return tuple(x_TD.new_empty_strided((len(x_TD), len(weight)), (0, 0)) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x_TD,) = ctx.saved_tensors
        weights, deliver = ctx.weights, ctx.gradients.deliver

        def of_weights() -> None:
            for weight, grad_TF in zip(weights, grads, strict=True):
                if weight.requires_grad:
                    deliver(weight, grad_TF.T @ x_TD)

        grad_TD = None
        if ctx.needs_input_grad[0]:
            grad_TD = grads[0] @ weights[0]
            for grad_TF, weight in zip(grads[1:], weights[1:], strict=True):
                grad_TD.addmm_(grad_TF, weight)
        needs_biases = ctx.needs_input_grad[3 + len(weights) :]
        of_biases = [grad_TF.sum(0) if needs else None for grad_TF, needs in zip(grads, needs_biases, strict=True)]
        ctx.gradients.do(of_weights)
        return (grad_TD, None, None, *(None for _ in weights), *of_biases)


class _Products(torch.autograd.Function):
    """The outputs; their gradients go to ``_Inputs`` as they are."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        *shapes_TF: Tensor,
    ) -> tuple[Tensor, ...]:
        return tuple(F.linear(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *grads)


def deferred_weights(model: nn.Module) -> set[str]:
    """Names of the weights whose gradients may be put off: those that ``fan_out`` and ``fan_in`` multiply with."""
    return {
        f"{prefix}.{name}.weight"
        for prefix, module in model.named_modules()
        if isinstance(module, Projecting)
        for name, child in module.named_children()
        if isinstance(child, Linear)
    }
