"""``geglu`` by PyTorch's own operators: on any device that PyTorch drives."""

import torch
import torch.nn.functional as F
from torch import Tensor


def geglu(gate_TF: Tensor, up_TF: Tensor, *, approximate: str = "tanh") -> Tensor:
    compute = torch.promote_types(gate_TF.dtype, torch.float32)
    return (F.gelu(gate_TF.to(compute), approximate=approximate) * up_TF.to(compute)).to(gate_TF.dtype)
