"""Listens to a kernel from outside: what goes into it and comes out, in the forward and in the backward pass.

Two autograd functions that change nothing stand around a call. All inputs pass through one, whose backward therefore
receives all gradients that the kernel computed; all outputs pass through the other, whose backward receives all
gradients that came from above. Tensors are kept by ``save_for_backward`` only, so that recomputation drops and
restores them like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

Gradient = Tensor | None


class Listener(Protocol):
    """Is told when the backward pass of the kernel's call is done."""

    def __call__(
        self,
        input_tensors: Sequence[Tensor],
        output_tensors: Sequence[Tensor],
        from_above: Sequence[Gradient],
        input_gradients: Sequence[Gradient],
    ) -> None:
        """All tensors detached.

        Args:
            input_tensors: every tensor among the arguments, in order.
            output_tensors: every tensor that was returned, in order.
            from_above: gradient of each output; None if it has none.
            input_gradients: of each input; None if it needs none.
        """
        ...


def tapped(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], listener: Listener
) -> tuple[Any, list[Tensor]]:
    """Call ``function`` between two taps.

    Returns:
        What it returned, and every tensor among it, detached.
    """
    exchange = _Exchange(listener)
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    passed = iter(_TapInputs.apply(exchange, *tensors))
    values = [next(passed) if isinstance(value, Tensor) else value for value in values]
    returned = function(*values[: len(args)], **dict(zip(kwargs, values[len(args) :], strict=True)))
    outputs = [returned] if isinstance(returned, Tensor) else list(returned)
    results = [value for value in outputs if isinstance(value, Tensor)]
    if not any(result.requires_grad for result in results):
        return returned, [result.detach() for result in results]
    passed = iter(_TapOutputs.apply(exchange, *results))
    outputs = [next(passed) if isinstance(value, Tensor) else value for value in outputs]
    return _as_returned(returned, outputs), [result.detach() for result in results]


class _Exchange:
    """What the tap of the outputs leaves for the tap of the inputs, in the backward pass of one call."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.outputs: Sequence[Tensor] = ()
        self.from_above: Sequence[Gradient] = ()


class _TapInputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: _Exchange, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _pass_through(ctx, exchange, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Gradient) -> tuple[Gradient, ...]:
        exchange: _Exchange = ctx.exchange
        with torch.no_grad():
            wanted = [g if needs else None for g, needs in zip(gradients, ctx.needs_input_grad[1:], strict=True)]
            inputs = [x.detach() for x in ctx.saved_tensors]
            exchange.listener(inputs, exchange.outputs, exchange.from_above, wanted)
        exchange.outputs, exchange.from_above = (), ()
        return (None, *gradients)


class _TapOutputs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, exchange: _Exchange, *tensors: Tensor) -> tuple[Tensor, ...]:
        return _pass_through(ctx, exchange, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Gradient) -> tuple[Gradient, ...]:
        ctx.exchange.outputs = [output.detach() for output in ctx.saved_tensors]
        ctx.exchange.from_above = gradients
        return (None, *gradients)


def _pass_through(ctx: Any, exchange: _Exchange, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    ctx.exchange = exchange
    ctx.set_materialize_grads(False)  # a kernel must not see zeros where it saw nothing
    ctx.save_for_backward(*tensors)
    passed = tuple(x.view_as(x) for x in tensors)
    ctx.mark_non_differentiable(*(x for x, needs in zip(passed, ctx.needs_input_grad[1:], strict=True) if not needs))
    return passed


def _as_returned(returned: Any, values: list[Any]) -> Any:
    """``values`` in the form of what was returned: a tensor, a tuple or a named tuple."""
    if isinstance(returned, Tensor):
        return values[0]
    return type(returned)(*values) if hasattr(returned, "_fields") else type(returned)(values)
