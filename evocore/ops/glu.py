"""Contracts of ``swiglu`` and ``geglu``: gated linear units (Shazeer, 2020).

Shapes: T tokens, F feed-forward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evocore.ops.kernel import Request


class SwiGLU(Protocol):
    """``silu(gate) * up`` elementwise.

    Args:
        gate_TF: any strides (often one half of a fused projection); not modified.
        up_TF: as ``gate_TF``.

    Returns:
        ``[T, F]`` in the dtype of the inputs, computed in float32 and rounded once. Differentiable in both.
    """

    def __call__(self, gate_TF: Tensor, up_TF: Tensor) -> Tensor: ...


class GeGLU(Protocol):
    """``gelu(gate) * up`` elementwise.

    Args:
        gate_TF, up_TF: as in ``swiglu``.
        approximate: ``"tanh"`` (Gemma) or ``"none"`` (the error function).

    Returns:
        As ``swiglu``.
    """

    def __call__(self, gate_TF: Tensor, up_TF: Tensor, *, approximate: str = "tanh") -> Tensor: ...


@dataclass(frozen=True)
class SwiGLURequest(Request):
    """``width`` is F."""

    width: int

    @property
    def op(self) -> str:
        return "swiglu"


@dataclass(frozen=True)
class GeGLURequest(Request):
    """``width`` is F."""

    width: int
    approximate: str = "tanh"

    @property
    def op(self) -> str:
        return "geglu"
