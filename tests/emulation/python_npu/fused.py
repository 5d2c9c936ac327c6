"""torch_npu's own operators: the schemas of the real package, what it and CANN's documentation refuse, and gradients.

Values come from the kernels that the stand-in for CANN has for the same operators, and the constraints that both know
are in these. Schemas are those of ``operators.json``, read from the dispatcher of torch_npu 2.13.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from python_npu import fused_kernels
from python_npu.fused_gradients import GRADIENTS
from python_npu.fused_kernels import Arguments
from python_npu.ledger import LEDGER
from standin_cann.opapi import ConstraintError
from torch import Tensor

DESCRIPTIONS: Mapping[str, Any] = json.loads(Path(__file__).with_name("operators.json").read_text(encoding="utf-8"))
"""By name: ``schema``; ``gradient``, which is ``autograd``, ``raises`` or ``none``; ``constraints`` in words."""


def register() -> torch.library.Library:
    """Define the operators; they are there as long as what is returned lives.

    One without a gradient has no kernel for autograd, as in torch_npu: PyTorch then makes a node that yields no
    gradient and says so in a warning.
    """
    library = torch.library.Library("npu", "DEF")  # noqa: TOR901 - kept by the caller
    for name, description in DESCRIPTIONS.items():
        library.define(description["schema"])
        operator = getattr(torch.ops.npu, name).default
        library.impl(name, _checked(operator, getattr(fused_kernels, name)), "PrivateUse1")
        if description["gradient"] != "none":
            library.impl(name, _differentiable(operator, GRADIENTS.get(name)), "AutogradPrivateUse1")
    return library


def _bound(operator: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> Arguments:
    """Every argument by its name; the dispatcher leaves out those that are at their defaults."""
    names = [argument.name for argument in operator._schema.arguments]
    defaults = {argument.name: argument.default_value for argument in operator._schema.arguments}
    return defaults | dict(zip(names, given, strict=False)) | dict(named)


def _checked(operator: Any, kernel: Callable[[Arguments], Any]) -> Callable[..., Any]:
    name = operator._schema.name.partition("::")[2]

    def checked(*given: Any, **named: Any) -> Any:
        arguments = _bound(operator, given, named)
        LEDGER.record_fused(name, arguments)
        for argument, value in arguments.items():
            for tensor in value if isinstance(value, list | tuple) else [value]:
                if isinstance(tensor, Tensor) and tensor.device.type != "npu":
                    raise RuntimeError(f"{name}: Expected all tensors to be on the same device: {argument} is not")
        try:
            return kernel(arguments)
        except ConstraintError as violation:
            raise RuntimeError(f"{name}: {violation}") from violation

    return checked


def _differentiable(operator: Any, gradient: Callable[[Arguments, Any, Tensor], Arguments] | None) -> Any:
    """Autograd's kernel. Only the first result can be differentiated; the others are by-products."""
    name, names = operator._schema.name, [argument.name for argument in operator._schema.arguments]

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *values: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                results = _call(operator, values)
            outputs = [x for x in (results if isinstance(results, tuple) else (results,)) if isinstance(x, Tensor)]
            ctx.mark_non_differentiable(*outputs[1:])
            ctx.where = [index for index, value in enumerate(values) if isinstance(value, Tensor)]
            ctx.save_for_backward(*(values[index] for index in ctx.where), *outputs)
            ctx.values = [None if isinstance(value, Tensor) else value for value in values]
            return results

        @staticmethod
        def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
            if gradient is None:
                raise NotImplementedError(f"derivative for {name} is not implemented")
            values, saved = list(ctx.values), ctx.saved_tensors
            for index, tensor in zip(ctx.where, saved, strict=False):
                values[index] = tensor
            found = gradient(dict(zip(names, values, strict=True)), saved[len(ctx.where) :], grad)
            return tuple(found.get(argument) for argument in names)

    return lambda *given, **named: Node.apply(*_bound(operator, given, named).values())


def _call(operator: Any, values: tuple[Any, ...]) -> Any:
    arguments = zip(operator._schema.arguments, values, strict=True)
    positional, named = [], {}
    for argument, value in arguments:
        if argument.kwarg_only:
            named[argument.name] = value
        else:
            positional.append(value)
    return operator(*positional, **named)
