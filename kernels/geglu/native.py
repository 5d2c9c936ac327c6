"""``geglu`` by PyTorch's own operators: on any device that PyTorch drives."""

import torch.nn.functional as F
from torch import Tensor


def geglu(gate_TF: Tensor, up_TF: Tensor, *, approximate: str = "tanh") -> Tensor:
    return F.gelu(gate_TF, approximate=approximate) * up_TF
