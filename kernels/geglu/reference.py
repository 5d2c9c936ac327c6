"""The meaning of ``geglu``, written to be read; every other provider is compared with it."""

import math

import torch
from torch import Tensor


def geglu(gate_TF: Tensor, up_TF: Tensor, *, approximate: str = "tanh") -> Tensor:
    compute = torch.promote_types(gate_TF.dtype, torch.float32)
    gate, up = gate_TF.to(compute), up_TF.to(compute)
    if approximate == "tanh":  # Hendrycks and Gimpel, 2016, section 2
        cdf = 0.5 * (1 + (math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)).tanh())
    else:
        cdf = 0.5 * (1 + (gate / math.sqrt(2)).erf())
    return (gate * cdf * up).to(gate_TF.dtype)
