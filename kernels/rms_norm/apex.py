"""``rms_norm`` and ``add_rms_norm`` by NVIDIA's apex, as InternEvo used it.

Only its entry for mixed types rounds once, as the contract has it: with a float32 weight it computes and returns
float32. The other one rounds to the activations' type before the scale and after it.
"""

from importlib import import_module

import torch
from torch import Tensor

_apex = import_module("apex.normalization.fused_layer_norm")


def rms_norm(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    scale_D = weight_D.float() + 1 if unit_offset else weight_D.float()
    if not x_TD.shape[0]:  # apex would launch no block at all, which CUDA refuses
        return (x_TD * scale_D).to(x_TD.dtype)
    y_TD: Tensor = _apex.mixed_dtype_fused_rms_norm_affine(x_TD, scale_D, torch.Size(scale_D.shape), eps)
    return y_TD.to(x_TD.dtype)


def add_rms_norm(
    x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
) -> tuple[Tensor, Tensor]:
    s_TD = residual_TD + x_TD.to(residual_TD.dtype)
    return rms_norm(s_TD, weight_D, eps=eps, unit_offset=unit_offset).to(x_TD.dtype), s_TD
