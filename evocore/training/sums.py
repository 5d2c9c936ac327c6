"""Sums that stay exact however many terms they have.

Over ten million elements PyTorch's own float32 norm on a CPU is off by 7e-4, because it adds up one term after the
other in a few lanes: more than two layouts of one run may differ, and enough to clip them differently.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROW = 1024
"""Terms that are added up at a stretch; their sums are added in pairs."""


def sum_of_squares(x: Tensor) -> Tensor:
    """Of all elements of a floating-point tensor of any shape, in float32: a scalar on its device."""
    flat = x.reshape(-1)
    whole = len(flat) // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=torch.float32)
    rest = torch.linalg.vector_norm(flat[whole:], dtype=torch.float32)
    return torch.cat([rows, rest.reshape(1)]).square().sum()
