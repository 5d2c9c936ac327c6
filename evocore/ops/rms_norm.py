"""Contracts of ``rms_norm`` and ``add_rms_norm``: root-mean-square normalisation (Zhang and Sennrich, 2019, eq. 4).

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evocore.ops.kernel import Request


class RMSNorm(Protocol):
    """``y = x / sqrt(mean(x**2, -1) + eps) * w``, or ``* (1 + w)`` with ``unit_offset`` (Gemma).

    Args:
        x_TD: activations, any strides; not modified.
        weight_D: scale, in the dtype of ``x_TD`` or float32.
        eps: added to the mean square, not to the root.

    Returns:
        ``[T, D]`` in the dtype of ``x_TD``. Statistics are computed in float32 (float64 for float64 activations) and
        rounded once, after the scale. Differentiable in ``x_TD`` and ``weight_D``; a row of zeros gives zeros and
        finite gradients.
    """

    def __call__(self, x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor: ...


class AddRMSNorm(Protocol):
    """``s = residual + x`` and ``rms_norm(s)`` in one pass: what every pre-norm block starts with.

    Args:
        x_TD: what the block before added.
        residual_TD: the residual stream, in the dtype of ``x_TD`` or float32.
        weight_D, eps, unit_offset: as in ``rms_norm``.

    Returns:
        ``(y_TD, s_TD)``: y normalises the unrounded sum or the rounded one (both are within the conformance rule), in
        the dtype of ``x_TD``; s has the dtype of ``residual_TD``. Differentiable in all three tensors. Neither input
        is modified.
    """

    def __call__(
        self, x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class RMSNormRequest(Request):
    """``width`` is D."""

    width: int
    unit_offset: bool = False

    @property
    def op(self) -> str:
        return "rms_norm"


@dataclass(frozen=True)
class AddRMSNormRequest(Request):
    """``width`` is D; ``residual_in_fp32`` tells whether the residual stream is float32 whatever ``dtype`` is."""

    width: int
    unit_offset: bool = False
    residual_in_fp32: bool = False

    @property
    def op(self) -> str:
        return "add_rms_norm"
