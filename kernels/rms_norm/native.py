"""``rms_norm`` and ``add_rms_norm`` by PyTorch's own operator: on any device that PyTorch drives."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    scale_D = 1 + weight_D.to(torch.promote_types(weight_D.dtype, torch.float32)) if unit_offset else weight_D
    compute = torch.promote_types(x_TD.dtype, scale_D.dtype)  # the operator wants one dtype, its result one rounding
    return F.rms_norm(x_TD.to(compute), scale_D.shape, scale_D.to(compute), eps).to(x_TD.dtype)


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    s_TD = residual_TD + x_TD.to(residual_TD.dtype)
    return rms_norm(s_TD, weight_D, eps=eps, unit_offset=unit_offset).to(x_TD.dtype), s_TD
