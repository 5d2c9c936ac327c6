"""Linear layers of one input, with weights that are whole only while they are used.

Nothing but the input is kept for backward. Two functions make one differentiable step: the first keeps the input and
computes all gradients, the second computes the outputs. Recomputation stops as soon as it has seen the last kept
input, which so comes before the last product of a block instead of after it.

Shapes: T tokens, D inputs, F outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.nn.layers import Linear
from evocore.parallel.isp.plan import Call
from evocore.parallel.isp.schedule import Schedule


def project(x_TD: Tensor, layers: Sequence[Linear], call: Call, schedule: Schedule) -> list[Tensor]:
    """``[layer(x_TD) for layer in layers]``; ``call`` is the use of these layers."""
    biases = [layer.bias for layer in layers]
    if not torch.is_grad_enabled():
        with schedule.forward(call) as weights:
            return _products(x_TD, weights, biases)
    shapes_TF = _Inputs.apply(x_TD, call, schedule, *(layer.weight for layer in layers), *biases)
    with schedule.forward(call) as weights:
        return list(_Products.apply(x_TD.detach(), weights, biases, *shapes_TF))


def _products(x_TD: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> list[Tensor]:
    return [F.linear(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True)]


class _Inputs(torch.autograd.Function):
    """Returns one tensor without memory for each layer, in the shape of its output, to receive its gradient."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, call: Call, schedule: Schedule, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        ctx.call, ctx.schedule = call, schedule
        ctx.save_for_backward(x_TD)
        outputs = [schedule.shapes[layer][0] for layer in call.layers]
        return tuple(x_TD.new_empty_strided((len(x_TD), output), (0, 0)) for output in outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, schedule = ctx.call, ctx.schedule
        (x_TD,) = ctx.saved_tensors  # before anything else: this is where recomputation takes place
        needs_input, needs_weights, needs_biases = _needs(ctx.needs_input_grad, len(grads))
        schedule.begin_backward(call, needs_weights=needs_input)

        def of_weights() -> None:
            gradients = []
            for layer, grad_TF, needs in zip(call.layers, grads, needs_weights, strict=True):
                if needs:
                    flat, grad_FD = schedule.reduction.empty(layer.weight, schedule.shapes[layer])
                    torch.mm(grad_TF.T, x_TD, out=grad_FD)
                    gradients.append((layer.weight, flat))
            schedule.reduction.start(gradients)

        schedule.do(of_weights)
        grad_TD = None
        if needs_input:
            with schedule.backward(call) as weights:
                grad_TD = grads[0] @ weights[0]
                for grad_TF, weight in zip(grads[1:], weights[1:], strict=True):
                    grad_TD.addmm_(grad_TF, weight)
        of_biases = [grad_TF.sum(0) if needs else None for grad_TF, needs in zip(grads, needs_biases, strict=True)]
        return (grad_TD, None, None, *(None for _ in grads), *of_biases)


def _needs(needs_input_grad: Sequence[bool], layers: int) -> tuple[bool, Sequence[bool], Sequence[bool]]:
    needs_parameters = needs_input_grad[3:]
    return needs_input_grad[0], needs_parameters[:layers], needs_parameters[layers:]


class _Products(torch.autograd.Function):
    """The outputs; their gradients go to ``_Inputs`` as they are."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights: list[Tensor], biases: list[Tensor | None], *shapes_TF: Tensor
    ) -> tuple[Tensor, ...]:
        return tuple(_products(x_TD, weights, biases))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, None, *grads)
