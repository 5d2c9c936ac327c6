"""How layers come by their kernels: they say what they need, and receive plain functions before the first step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from evocore.ops.kernel import Request
from evocore.ops.resolution import Resolution


class UsesOps(nn.Module):
    """A layer that computes through ops.

    ``requests`` names each function that the layer calls; ``bind_kernels`` sets it as an attribute of that name, so
    that the call in ``forward`` is an ordinary function call.
    """

    def requests(self) -> dict[str, Request]:
        """Attribute name -> what is needed of an op; asked again after a parallel strategy resized the layer."""
        raise TypeError(f"{type(self).__name__} does not say which ops it needs")


def model_requests(model: nn.Module) -> list[Request]:
    """What all layers of a model need, each request once, in module order."""
    found = [
        request for layer in model.modules() if isinstance(layer, UsesOps) for request in layer.requests().values()
    ]
    return list(dict.fromkeys(found))


def bind_kernels(
    model: nn.Module,
    resolution: Resolution,
    wrap: Callable[[Callable[..., Any], Request, str], Callable[..., Any]] | None = None,
) -> None:
    """Give every layer the functions that were chosen for it.

    Args:
        model: its layers are not bound yet.
        resolution: of the model's requests.
        wrap: called with each function, its request and the layer's name in the model; the layer is given what it
            returns. None gives every layer the kernel's own function.
    """
    for layer_name, layer in model.named_modules():
        if isinstance(layer, UsesOps):
            for name, request in layer.requests().items():
                function = resolution.function(request)
                setattr(layer, name, function if wrap is None else wrap(function, request, layer_name))
