"""``swiglu`` by PyTorch's own operators: on any device that PyTorch drives."""

import torch.nn.functional as F
from torch import Tensor


def swiglu(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    return F.silu(gate_TF) * up_TF
