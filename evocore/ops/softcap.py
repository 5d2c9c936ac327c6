"""The soft cap of logits, ``softcap * tanh(x / softcap)`` (Gemma 2, section 2), and its derivative."""

from __future__ import annotations

import torch
from torch import Tensor


def capped(x: Tensor, softcap: float) -> Tensor:
    """In float32 (float64 for float64), differentiable: near the cap low precision tells too few values apart."""
    return (x.to(torch.promote_types(x.dtype, torch.float32)) / softcap).tanh_() * softcap


def slope(capped_x: Tensor, softcap: float) -> Tensor:
    """The derivative with respect to x where the capped value is known: ``1 - (capped / softcap)^2``."""
    return (capped_x / softcap).square_().neg_().add_(1)
