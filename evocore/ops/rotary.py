"""Contract of ``rotary``: rotary position embedding (Su et al., 2021, equation 34).

Shapes: T tokens, N heads, H head size, P rotated pairs (2 P <= H).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evocore.ops.kernel import Request


class Rotary(Protocol):
    """Rotate pairs of features by an angle per token: ``(a, b) -> (a cos - b sin, b cos + a sin)``.

    Args:
        x_TNH: queries or keys, any strides; not modified.
        cos_TP: float32 cosines of each token's angles.
        sin_TP: float32 sines.
        interleaved: pair p is features ``(2 p, 2 p + 1)`` (Meta's Llama); otherwise ``(p, p + P)`` (NeoX).

    Returns:
        ``[T, N, H]`` in the dtype of ``x_TNH``, computed in float32; features from 2 P on pass through unchanged.
        Differentiable in ``x_TNH`` only.
    """

    def __call__(self, x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, interleaved: bool = False) -> Tensor: ...


@dataclass(frozen=True)
class RotaryRequest(Request):
    """``head_dim`` is H, ``pairs`` is P."""

    head_dim: int
    pairs: int
    interleaved: bool = False

    @property
    def op(self) -> str:
        return "rotary"
