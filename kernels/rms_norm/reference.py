"""The meaning of ``rms_norm`` and ``add_rms_norm``, written to be read; every other provider is compared with it."""

import torch
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    compute = torch.promote_types(x_TD.dtype, torch.float32)
    x, weight = x_TD.to(compute), weight_D.to(compute)
    scale = 1 + weight if unit_offset else weight
    return (x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * scale).to(x_TD.dtype)


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    s_TD = residual_TD + x_TD.to(residual_TD.dtype)
    return rms_norm(s_TD, weight_D, eps=eps, unit_offset=unit_offset).to(x_TD.dtype), s_TD
