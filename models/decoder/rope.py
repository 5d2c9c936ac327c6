"""Angles of the rotary position embedding (Su et al., 2021, section 3.2.2)."""

from __future__ import annotations

import torch
from torch import Tensor


class RotaryAngles:
    """Turns positions into cosines and sines, once per micro-batch for all layers.

    Args:
        head_dim: H; pair p turns by ``position * base ** (-2 p / H)``.
        base: of the geometric series of frequencies.
    """

    def __init__(self, head_dim: int, base: float) -> None:
        self.pairs = head_dim // 2
        self._frequencies = [base ** (-2 * pair / head_dim) for pair in range(self.pairs)]
        self._on_device: dict[torch.device, Tensor] = {}

    def __call__(self, positions_T: Tensor) -> tuple[Tensor, Tensor]:
        """``(cos_TP, sin_TP)`` in float32; the product is exact to float32's last bits for any sensible position."""
        device = positions_T.device
        if device not in self._on_device:
            self._on_device[device] = torch.tensor(self._frequencies, dtype=torch.float32, device=device)
        angles_TP = positions_T.float().unsqueeze(1) * self._on_device[device]
        return angles_TP.cos(), angles_TP.sin()
