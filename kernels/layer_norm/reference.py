"""The meaning of ``layer_norm``, written to be read; every other provider is compared with it."""

import torch
from torch import Tensor


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float) -> Tensor:
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    centred = x_TD.to(compute) - x_TD.to(compute).mean(-1, keepdim=True)
    y = centred * (centred.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_D.to(compute)
    if bias_D is not None:
        y = y + bias_D.to(compute)
    return y.to(x_TD.dtype)
