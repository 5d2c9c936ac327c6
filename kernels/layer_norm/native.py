"""``layer_norm`` by PyTorch's own operator: fused, forward and backward, on any device that PyTorch drives."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float) -> Tensor:
    if x_TD.dtype == torch.float64:  # the operator takes float32 weights for low precision only
        weight_D, bias_D = weight_D.double(), None if bias_D is None else bias_D.double()
    return F.layer_norm(x_TD, weight_D.shape, weight_D, bias_D, eps)
