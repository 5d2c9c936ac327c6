"""Calls a kernel with an example, differentiates what it returns, and sees to it that nothing given was changed."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from evocore.testing.conformance.example import Example

LONGEST = 300
"""Characters that are told of an error: PyTorch's list of all its dispatch keys helps nobody."""


class ContractError(AssertionError):
    """What a kernel, a device or its collectives do against their contract, in one line."""


@contextmanager
def during(situation: str = "") -> Iterator[None]:
    """Say in which situation it went wrong; whatever a stranger's code raises breaks its contract."""
    prefix = f"{situation}: " if situation else ""
    try:
        yield
    except ContractError as violation:
        raise ContractError(prefix + str(violation)) from violation.__cause__
    except Exception as error:  # noqa: BLE001 - a stranger's code can raise anything; it is reported
        raise ContractError(f"{prefix}raised {told(error)}") from error


def told(error: Exception) -> str:
    """The error in one line of bearable length."""
    return textwrap.shorten(traceback.format_exception_only(error)[-1], LONGEST, placeholder=" ...")


@dataclass(frozen=True)
class Results:
    """What one call gave.

    Attributes:
        outputs: what the kernel returned, detached.
        differentiable: which of the outputs required gradients.
        gradients: of the inputs that wanted one, by position.
    """

    outputs: tuple[Tensor, ...]
    differentiable: tuple[bool, ...]
    gradients: dict[int, Tensor]

    def named(self) -> dict[str, Tensor]:
        """All numbers of the call by what they are."""
        outputs = {f"output {index}": out for index, out in enumerate(self.outputs)}
        return outputs | {f"the gradient of input {index}": grad for index, grad in self.gradients.items()}


def call(
    function: Callable[..., Tensor | Sequence[Tensor]],
    example: Example,
    *,
    wanted: Sequence[int] | None = None,
    layout: Callable[[Tensor], Tensor] = lambda x: x,
) -> Results:
    """Outputs and gradients of one call.

    Args:
        function: of the form that ``Example`` describes.
        wanted: positions of the inputs that require gradients; None for all, empty for a call without gradients.
        layout: how the gradients that come from above are stored.

    Raises:
        ContractError: if the call changed an input, an output that it had returned, or a gradient from above.
    """
    positions = range(len(example.inputs)) if wanted is None else wanted
    inputs = [x.detach().requires_grad_(index in positions) for index, x in enumerate(example.inputs)]
    given, copies = example.tensors(), [x.clone() for x in example.tensors()]
    with torch.set_grad_enabled(bool(positions)):
        returned = function(*inputs, *example.constants, **example.options)
    outputs = (returned,) if isinstance(returned, Tensor) else tuple(returned)
    _check_unchanged("the forward pass", given, copies)
    returned_copies = [out.detach().clone() for out in outputs]
    differentiable = [out.requires_grad for out in outputs]
    gradients: dict[int, Tensor] = {}
    if positions:
        ends = [(out, layout(_upstream(index, out))) for index, out in enumerate(outputs) if out.requires_grad]
        from_above = [gradient.clone() for _, gradient in ends]
        gradients = _gradients(ends, {index: inputs[index] for index in positions})
        _check_unchanged("the backward pass", given, copies)
        _check_unchanged("the backward pass", [gradient for _, gradient in ends], from_above, "a gradient from above")
        _check_unchanged("the backward pass", [out.detach() for out in outputs], returned_copies, "its own output")
    return Results(tuple(out.detach() for out in outputs), tuple(differentiable), gradients)


def _gradients(ends: Sequence[tuple[Tensor, Tensor]], wanting: dict[int, Tensor]) -> dict[int, Tensor]:
    """Of the inputs in ``wanting``, given outputs and the gradients that come to them; 0 where nothing depends."""
    if not ends:
        return {index: torch.zeros_like(x) for index, x in wanting.items()}
    outputs, from_above = zip(*ends, strict=True)
    found = torch.autograd.grad(outputs, list(wanting.values()), from_above, materialize_grads=True)
    return dict(zip(wanting, found, strict=True))


def _upstream(index: int, out: Tensor) -> Tensor:
    """The same random gradient for every provider and precision: rounded to bfloat16, so that all can hold it."""
    generator = torch.Generator().manual_seed(1000 * index + out.numel())
    return torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype).to(out.device)


def _check_unchanged(when: str, tensors: Sequence[Tensor], copies: Sequence[Tensor], what: str = "an input") -> None:
    for x, copy in zip(tensors, copies, strict=True):
        if ((x != copy) & ~(x.isnan() & copy.isnan())).any():
            raise ContractError(f"{when} changed {what} of shape {list(x.shape)}")


# --- how a tensor can be stored ------------------------------------------------------------------------------------


def sliced(x: Tensor) -> Tensor:
    """Equal to ``x``, but a part of wider rows, as one of several outputs of a fused projection is."""
    if x.dim() < 2:
        return spread(x)
    wide = torch.cat((x + 1, x, x + 1), -1)
    return wide.narrow(-1, x.shape[-1], x.shape[-1]).detach()


def spread(x: Tensor) -> Tensor:
    """Equal to ``x``, but with another number after each element and the first two dimensions stored in turn."""
    gaps = torch.stack((x, x + 1), -1)
    if x.dim() > 1:
        gaps = gaps.transpose(0, 1).contiguous().transpose(0, 1)
    return gaps[..., 0].detach()


LAYOUTS = {"as parts of wider rows": sliced, "transposed and with gaps": spread}
"""Ways in which activations, and gradients from above, may come."""
