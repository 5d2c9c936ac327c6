"""Runs the reference on a part of a call, in the run's precision and in a wider one, and tells how the kernel did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from evocore.ops.accuracy import error_ratio
from evocore.training.shadow.calls import ARGUMENTS, ELEMENTS, RESULTS, WEIGHTS, Arguments, choose_part, tensors_of

Function = Callable[..., Any]
Ratios = dict[str, Tensor]


@dataclass(frozen=True)
class Seen:
    """A call of a kernel with all that went in and came out, by the names of the contract.

    Attributes:
        arguments: tensors detached.
        outputs: every tensor that was returned.
        from_above: gradients of those outputs that have one; empty if nothing was differentiated.
        gradients: that the kernel computed, by the name of the input.
    """

    arguments: Arguments
    outputs: Mapping[str, Tensor]
    from_above: Mapping[str, Tensor] = field(default_factory=dict)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Error ratios of the outputs and of the gradients of a call by name, and which part of it was compared."""

    forward: Ratios
    backward: Ratios
    part: str


def oracle_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device computes it, otherwise float32."""
    try:
        x = torch.ones(2, 2, dtype=torch.float64, device=device)
        (x @ x).softmax(-1).square().sum().item()
    except (RuntimeError, TypeError):  # what PyTorch raises for a dtype that a device lacks
        return torch.float32
    return torch.float64


def compare_call(
    op: str, kernel: Function, reference: Function, seen: Seen, oracle: torch.dtype, turn: int
) -> Verdict:
    """Error ratios of a call.

    Gradients that are sums over more than the compared part are taken from the kernel once more, called with the part
    alone.

    Args:
        kernel: the chosen one.
        reference: of the op.
        oracle: in which the reference is exact.
        turn: chooses the part of a large call.
    """
    part = choose_part(op, seen.arguments, turn)
    arguments = {name: part.of(name, x) if isinstance(x, Tensor) else x for name, x in seen.arguments.items()}
    arguments |= part.options
    above = {name: part.of(name, x) for name, x in seen.from_above.items()}
    gradients = {name: x for name, x in seen.gradients.items() if part.is_complete(name) or x.numel() <= WEIGHTS}
    plain_outputs, plain_gradients = _run(op, reference, arguments, above, list(gradients))
    exact_outputs, exact_gradients = _run(op, reference, _wide(arguments, oracle), above, list(gradients))
    sums = [name for name in gradients if not part.is_complete(name)]
    again = _run(op, kernel, arguments, above, sums)[1] if sums else {}
    return Verdict(
        {
            name: error_ratio(part.of(name, x), plain_outputs[name], exact_outputs[name])
            for name, x in seen.outputs.items()
            if x.is_floating_point() and part.is_complete(name)
        },
        {
            name: error_ratio(again.get(name, part.of(name, x)), plain_gradients[name], exact_gradients[name])
            for name, x in gradients.items()
        },
        part.text,
    )


class UpdateCheck:
    """Compares the update of ``adamw`` with the reference's on a bounded stretch of each of its tensors.

    Made before the update, because that happens in place.
    """

    def __init__(self, tensors: Sequence[Sequence[Tensor]], turn: int) -> None:
        """``tensors``: parameters, gradients and the two moments, as the contract has them."""
        self._after = [[_stretch(x, turn) for x in entries] for entries in tensors]
        self._before = [[x.clone() for x in entries] for entries in self._after]
        largest = max((x.numel() for x in tensors[0]), default=0)
        self.part = "whole" if largest <= ELEMENTS else f"{ELEMENTS} elements of each tensor"

    def compare(self, reference: Function, options: Mapping[str, Any], oracle: torch.dtype) -> Ratios:
        """Error ratios of parameters and moments, after the kernel's update."""
        plain = [[x.clone() for x in entries] for entries in self._before]
        exact = [[x.to(oracle, copy=True) for x in entries] for entries in self._before]
        reference(*plain, **options)
        reference(*exact, **options)
        found: Ratios = {}
        for number, name in ((0, "param"), (2, "exp_avg"), (3, "exp_avg_sq")):
            triples = zip(self._after[number], plain[number], exact[number], strict=True)
            found[name] = torch.stack([error_ratio(*triple) for triple in triples]).amax()
        return found


def _run(
    op: str, function: Function, arguments: Arguments, above: Mapping[str, Tensor], wanted: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs by name, and the gradients of the ``wanted`` inputs."""
    leaves = {name: x.detach().requires_grad_(name in wanted) for name, x in tensors_of(arguments).items()}
    given = {**arguments, **leaves}
    positional = [given.pop(name) for name in ARGUMENTS[op] if name in given]
    with torch.enable_grad():
        returned = function(*positional, **given)
    outputs = dict(zip(RESULTS[op], [returned] if isinstance(returned, Tensor) else returned, strict=True))
    gradients: dict[str, Tensor] = {}
    if wanted and above:
        found = torch.autograd.grad(
            [outputs[name] for name in above],
            [leaves[name] for name in wanted],
            [x.to(outputs[name].dtype) for name, x in above.items()],
            materialize_grads=True,
        )
        gradients = dict(zip(wanted, found, strict=True))
    return {name: x.detach() for name, x in outputs.items()}, gradients


def _wide(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    return {
        name: x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in arguments.items()
    }


def _stretch(x: Tensor, turn: int) -> Tensor:
    """A bounded piece of the flattened tensor, another one at each turn."""
    size = min(x.numel(), ELEMENTS)
    start = min(turn % -(-x.numel() // ELEMENTS) * ELEMENTS, x.numel() - size) if size else 0
    return x.flatten()[start : start + size]
