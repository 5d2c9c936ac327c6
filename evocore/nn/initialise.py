"""Initial weights that depend on the seed and the parameter's name, not on devices, layout or order of creation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from evocore.nn.experts import ExpertLinear
from evocore.nn.layers import Embedding, Linear, Norm, RMSNorm
from evocore.nn.router import Scorer
from evocore.seeds import derive_seed


def initial_value(module: nn.Module, kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Float32 values on the host of parameter ``kind`` ("weight" or "bias") of ``module``.

    Raises:
        TypeError: if the module is none of ``evocore.nn``'s layers.
    """
    if kind == "bias":
        return torch.zeros(shape)
    if isinstance(module, Norm | RMSNorm):
        return torch.full(shape, 0.0 if module.unit_offset else 1.0)
    if isinstance(module, Linear | Embedding | ExpertLinear | Scorer):
        return torch.empty(shape).normal_(0.0, module.init_std, generator=generator)
    raise TypeError(f"no initialisation is known for {type(module).__name__}")


def generator_of(seed: int, name: str) -> torch.Generator:
    """The random stream of one parameter."""
    return torch.Generator().manual_seed(derive_seed(seed, name) >> 1)


class Cut(Protocol):
    """What of a parameter is here, if it is not the whole."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        ...

    def take(self, whole: Tensor) -> Tensor:
        """The part that is here, in the shape that it has here."""
        ...


@torch.no_grad()
def initialise(
    model: nn.Module,
    seed: int,
    cuts: Mapping[str, Cut] | None = None,
    held: Callable[[nn.Parameter], Tensor] = lambda parameter: parameter,
) -> None:
    """Fill every parameter of a model that is already on its device, and every buffer with zeros.

    The normal distributions are drawn on the host in float32 and rounded to the parameter's dtype, so that every
    device and every layout starts from the same model. A model with a method ``initial_value`` draws by that, and has
    filled its buffers itself.

    Args:
        cuts: by parameter name; None if all are whole.
        held: the memory behind a parameter, where it is not the parameter itself.
    """
    draw = getattr(model, "initial_value", initial_value)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for prefix, module in model.named_modules():
        for kind, parameter in module.named_parameters(prefix="", recurse=False):
            name = f"{prefix}.{kind}" if prefix else kind
            if names[parameter] != name:
                continue  # tied to one that has its value
            shape = tuple(parameter.shape) if cuts is None else cuts[name].shape
            value = draw(module, kind, shape, generator_of(seed, name))
            held(parameter).copy_(value if cuts is None else cuts[name].take(value))
    for buffer in [] if hasattr(model, "initial_value") else model.buffers():
        buffer.zero_()
