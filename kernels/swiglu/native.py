"""``swiglu`` by PyTorch's own operators: on any device that PyTorch drives."""

import torch
import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    compute = torch.promote_types(gate_TF.dtype, torch.float32)
    return (F.silu(gate_TF.to(compute)) * up_TF.to(compute)).to(gate_TF.dtype)
