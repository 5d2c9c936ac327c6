"""The meaning of ``swiglu``, written to be read; every other provider is compared with it."""

import torch
from torch import Tensor


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    compute = torch.promote_types(gate_TF.dtype, torch.float32)
    gate, up = gate_TF.to(compute), up_TF.to(compute)
    return (gate * gate.sigmoid() * up).to(gate_TF.dtype)
