"""Initial weights that depend on the seed and the parameter's name, not on devices, layout or order of creation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evocore.nn.layers import Embedding, Linear, RMSNorm
from evocore.seeds import derive_seed


def initial_value(module: nn.Module, kind: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Float32 values on the host of parameter ``kind`` ("weight" or "bias") of ``module``.

    Raises:
        TypeError: if the module is none of ``evocore.nn``'s layers.
    """
    if kind == "bias":
        return torch.zeros(shape)
    if isinstance(module, RMSNorm):
        return torch.full(shape, 0.0 if module.unit_offset else 1.0)
    if isinstance(module, Linear | Embedding):
        return torch.empty(shape).normal_(0.0, module.init_std, generator=generator)
    raise TypeError(f"no initialisation is known for {type(module).__name__}")


def generator_of(seed: int, name: str) -> torch.Generator:
    """The random stream of one parameter."""
    return torch.Generator().manual_seed(derive_seed(seed, name) >> 1)


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter of a model that is already on its device.

    The normal distributions are drawn on the host in float32 and rounded to the parameter's dtype, so that every
    device and every layout starts from the same model.
    """
    for prefix, module in model.named_modules():
        for kind, parameter in module.named_parameters(prefix="", recurse=False):
            name = f"{prefix}.{kind}" if prefix else kind
            parameter.copy_(initial_value(module, kind, tuple(parameter.shape), generator_of(seed, name)))
