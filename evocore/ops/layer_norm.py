"""Contract of ``layer_norm`` (Ba, Kiros and Hinton, 2016).

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evocore.ops.kernel import Request


class LayerNorm(Protocol):
    """``y = (x - mean(x)) / sqrt(var(x) + eps) * w + b`` over the last dimension, with the biased variance.

    Args:
        x_TD: activations, any strides; not modified.
        weight_D: scale, in the dtype of ``x_TD`` or float32.
        bias_D: shift, in the dtype of ``weight_D``; None for none.
        eps: added to the variance.

    Returns:
        ``[T, D]`` in the dtype of ``x_TD``; statistics in float32, rounded once at the end. Differentiable in all
        three tensors.
    """

    def __call__(self, x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float) -> Tensor: ...


@dataclass(frozen=True)
class LayerNormRequest(Request):
    """``width`` is D."""

    width: int
    bias: bool = True

    @property
    def op(self) -> str:
        return "layer_norm"
