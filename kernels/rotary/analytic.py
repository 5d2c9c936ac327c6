"""``rotary`` with its backward written out: the gradient is rotated by the opposite angle.

It keeps no activations for backward and makes no temporaries of their size. Interleaved pairs are complex numbers, so
their rotation is one complex product.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def rotary(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, interleaved: bool = False) -> Tensor:
    rotated_TNH: Tensor = _Rotary.apply(x_TNH, cos_TP, sin_TP, interleaved)
    return rotated_TNH


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos_TP, sin_TP)
        ctx.interleaved = interleaved
        return _rotate(x_TNH, cos_TP, sin_TP, 1, interleaved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, None, None, None]:
        cos_TP, sin_TP = ctx.saved_tensors
        return _rotate(grad_TNH, cos_TP, sin_TP, -1, ctx.interleaved), None, None, None


def _rotate(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, sign: int, interleaved: bool) -> Tensor:
    """Rotate by the angles times ``sign``, 1 or -1."""
    compute, width = torch.promote_types(x_TNH.dtype, torch.float32), 2 * cos_TP.shape[-1]
    cos, sin = cos_TP[:, None].to(compute), sin_TP[:, None].to(compute)
    if width == x_TNH.shape[-1] and x_TNH.dtype == compute:
        return _interleaved(x_TNH, cos, sin * sign) if interleaved else _half(x_TNH, cos, sin, sign)
    features = x_TNH[..., :width].to(compute)
    turned = _interleaved(features, cos, sin * sign) if interleaved else _half(features, cos, sin, sign)
    out = torch.empty(x_TNH.shape, dtype=x_TNH.dtype, device=x_TNH.device)
    out[..., :width] = turned
    out[..., width:] = x_TNH[..., width:]
    return out


def _half(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    out = x * torch.cat((cos, cos), -1)  # one long loop is faster than two over halves of a head
    (a, b), (out_a, out_b) = x.chunk(2, -1), out.chunk(2, -1)
    out_a.addcmul_(b, sin, value=-sign)
    out_b.addcmul_(a, sin, value=sign)
    return out


def _interleaved(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.contiguous()
    if x.storage_offset() % 2:  # complex numbers lie at even places only
        x = x.clone()
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2)
