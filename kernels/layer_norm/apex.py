"""``layer_norm`` by NVIDIA's apex; with a float32 weight it computes and returns float32, rounded once here."""

from importlib import import_module

import torch
from torch import Tensor

_apex = import_module("apex.normalization.fused_layer_norm")


def layer_norm(x_TD: Tensor, weight_D: Tensor, bias_D: Tensor | None, *, eps: float) -> Tensor:
    scale_D = weight_D.float()
    shift_D = torch.zeros_like(scale_D) if bias_D is None else bias_D.float()
    if not x_TD.shape[0]:  # apex would launch no block at all, which CUDA refuses
        return (x_TD * scale_D + shift_D).to(x_TD.dtype)
    y_TD: Tensor = _apex.mixed_dtype_fused_layer_norm_affine(x_TD, scale_D, shift_D, torch.Size(scale_D.shape), eps)
    return y_TD.to(x_TD.dtype)
