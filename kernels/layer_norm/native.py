"""``layer_norm`` by PyTorch's own operator: fused, forward and backward, on any device that PyTorch drives."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float) -> Tensor:
    compute = torch.promote_types(x_TD.dtype, weight_D.dtype)  # not every device takes a mixture
    bias_D = None if bias_D is None else bias_D.to(compute)
    return F.layer_norm(x_TD.to(compute), weight_D.shape, weight_D.to(compute), bias_D, eps).to(x_TD.dtype)
