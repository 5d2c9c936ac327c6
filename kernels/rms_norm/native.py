"""``rms_norm`` by PyTorch's own operator: on any device that PyTorch drives."""

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    scale_D = 1 + weight_D if unit_offset else weight_D
    return F.rms_norm(x_TD, scale_D.shape, scale_D.to(x_TD.dtype), eps)


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    s_TD = residual_TD + x_TD.to(residual_TD.dtype)
    return rms_norm(s_TD, weight_D, eps=eps, unit_offset=unit_offset).to(x_TD.dtype), s_TD
