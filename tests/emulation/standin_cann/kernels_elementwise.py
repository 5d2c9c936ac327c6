"""aclnn kernels of norms, rotary embedding and gated activations, in float32; gradients by their formulas.

Constraints are those that the vendor's documentation states for Atlas A2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from standin_cann.opapi import require
from torch import Tensor
from torch.nn.functional import gelu, silu

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LARGEST_HEAD = 896
"""Features of a rotated head must be fewer."""
MODES = ("half", "interleave")


def _require_float(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        require(tensor.dtype in FLOATS, f"{name} is float32, bfloat16 or float16, not {tensor.dtype}")


# --- rms_norm -------------------------------------------------------------------------------------------------------


def _check_norm(x: Tensor, gamma: Tensor) -> None:
    _require_float(x=x, gamma=gamma)
    require(
        gamma.dtype in (x.dtype, torch.float32),
        f"gamma is of the dtype of x, {x.dtype}, or float32, not {gamma.dtype}",
    )
    require(1 <= x.dim() <= 8, f"x has 1 to 8 dimensions, not {x.dim()}")
    require(x.shape[x.dim() - gamma.dim() :] == gamma.shape, f"gamma {gamma.shape} are the last sizes of x {x.shape}")


def _dims(x: Tensor, gamma: Tensor) -> tuple[int, ...]:
    return tuple(range(x.dim() - gamma.dim(), x.dim()))


def rms_norm(x: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor) -> None:
    _check_norm(x, gamma)
    scale = torch.rsqrt(x.float().square().mean(_dims(x, gamma), keepdim=True) + epsilon)
    y.copy_(x.float() * scale * gamma.float())
    rstd.copy_(scale.view(rstd.shape))


def add_rms_norm(
    x: Tensor, residual: Tensor, gamma: Tensor, epsilon: float, y: Tensor, rstd: Tensor, total: Tensor
) -> None:
    require(x.dtype == residual.dtype == gamma.dtype, "x, residual and gamma have one dtype")
    require(x.shape == residual.shape, f"x {x.shape} and residual {residual.shape} have one shape")
    total.copy_(x.float() + residual.float())
    rms_norm(total, gamma, epsilon, y, rstd)


def rms_norm_grad(dy: Tensor, x: Tensor, rstd: Tensor, gamma: Tensor, dx: Tensor, dgamma: Tensor) -> None:
    _check_norm(x, gamma)
    require(dy.dtype == x.dtype and dy.shape == x.shape, "dy is like x")
    require(rstd.dtype == dgamma.dtype == torch.float32, "rstd and dgamma are float32")
    dims = _dims(x, gamma)
    scale = rstd.view(*x.shape[: dims[0]], *(1 for _ in dims))
    normed, scaled = x.float() * scale, dy.float() * gamma.float()
    dx.copy_(scale * (scaled - normed * (scaled * normed).mean(dims, keepdim=True)))
    dgamma.copy_((dy.float() * normed).reshape(-1, *gamma.shape).sum(0))


# --- rotary embedding -----------------------------------------------------------------------------------------------


def _turn(x: Tensor, mode: int) -> Tensor:
    """The quarter turn of every pair of features."""
    if MODES[mode] == "half":
        first, second = x.chunk(2, -1)
        return torch.cat((-second, first), -1)
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def _turn_back(x: Tensor, mode: int) -> Tensor:
    return -_turn(x, mode)


def _check_rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: int) -> None:
    _require_float(x=x, cos=cos, sin=sin)
    require(0 <= mode < len(MODES), f"mode is 0 (half) or 1 (interleave), not {mode}")
    require(
        x.dtype == cos.dtype == sin.dtype, f"x, cos and sin have one dtype, not {x.dtype}, {cos.dtype}, {sin.dtype}"
    )
    require(x.dim() in (3, 4), f"x has 3 or 4 dimensions, not {x.dim()}")
    width = x.shape[-1]
    require(
        width % 2 == 0 and width < LARGEST_HEAD, f"features of a head: even and below {LARGEST_HEAD}, not {width}"
    )
    require(cos.shape == sin.shape and cos.dim() == x.dim(), f"cos and sin have the dimensions of x, not {cos.shape}")
    require(cos.shape[-1] == width, f"cos and sin are as wide as x, {width}, not {cos.shape[-1]}")
    broad = all(size in (1, whole) for size, whole in zip(cos.shape, x.shape, strict=True))
    require(broad, f"cos and sin {cos.shape} broadcast to x {x.shape}")
    if MODES[mode] == "interleave":
        require(
            cos.numel() == max(cos.shape[:-1]) * width,
            f"interleave: cos and sin have one long dimension, not {cos.shape}",
        )


def rotary(x: Tensor, cos: Tensor, sin: Tensor, mode: int, out: Tensor) -> None:
    _check_rotary(x, cos, sin, mode)
    out.copy_(x.float() * cos.float() + _turn(x.float(), mode) * sin.float())


def rotary_grad(
    dy: Tensor,
    cos: Tensor,
    sin: Tensor,
    x: Tensor | None,
    mode: int,
    dx: Tensor,
    dcos: Tensor | None,
    dsin: Tensor | None,
) -> None:
    _check_rotary(dy, cos, sin, mode)
    grad = dy.float()
    dx.copy_(grad * cos.float() + _turn_back(grad * sin.float(), mode))
    if x is not None and dcos is not None and dsin is not None:
        dcos.copy_((grad * x.float()).sum_to_size(cos.shape))
        dsin.copy_((grad * _turn(x.float(), mode)).sum_to_size(sin.shape))


# --- gated activations ----------------------------------------------------------------------------------------------


def _check_gated(x: Tensor, dim: int) -> None:
    _require_float(x=x)
    require(1 <= x.dim() <= 8, f"x has 1 to 8 dimensions, not {x.dim()}")
    require(x.numel() > 0, f"x is not empty, as {x.shape} is")
    require(x.shape[dim] % 2 == 0, f"the size of x along dim {dim} is even, not {x.shape[dim]}")


def swiglu(x: Tensor, dim: int, out: Tensor) -> None:
    _check_gated(x, dim)
    gate, up = x.float().chunk(2, dim)
    out.copy_(silu(gate) * up)


def swiglu_grad(dy: Tensor, x: Tensor, dim: int, dx: Tensor) -> None:
    _check_gated(x, dim)
    require(dy.dtype == x.dtype, f"dy is of the dtype of x, {x.dtype}, not {dy.dtype}")
    grad, (gate, up) = dy.float(), x.float().chunk(2, dim)
    sigmoid = torch.sigmoid(gate)
    dx.copy_(torch.cat((grad * up * sigmoid * (1 + gate * (1 - sigmoid)), grad * gate * sigmoid), dim))


def _gelu_slope(x: Tensor, approximate: int) -> Tensor:
    if approximate == 0:
        return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    root = math.sqrt(2 / math.pi)
    tanh = torch.tanh(root * (x + 0.044715 * x**3))
    return 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * root * (1 + 3 * 0.044715 * x * x)


def _halves(x: Tensor, dim: int, approximate: int, activate_left: bool) -> tuple[Tensor, Tensor]:
    """The half that is activated and the other one."""
    _check_gated(x, dim)
    require(approximate in (0, 1), f"approximate is 0 (none) or 1 (tanh), not {approximate}")
    left, right = x.float().chunk(2, dim)
    return (left, right) if activate_left else (right, left)


def geglu(x: Tensor, dim: int, approximate: int, activate_left: bool, out: Tensor, gelu_out: Tensor) -> None:
    gate, up = _halves(x, dim, approximate, activate_left)
    activated = gelu(gate, approximate="tanh" if approximate else "none")
    gelu_out.copy_(activated)
    out.copy_(activated * up)


def geglu_grad(
    dy: Tensor, x: Tensor, gelu_out: Tensor, dim: int, approximate: int, activate_left: bool, dx: Tensor
) -> None:
    gate, up = _halves(x, dim, approximate, activate_left)
    require(dy.dtype == x.dtype == gelu_out.dtype, "dy, x and gelu have one dtype")
    grad_gate, grad_up = dy.float() * up * _gelu_slope(gate, approximate), dy.float() * gelu_out.float()
    dx.copy_(torch.cat((grad_gate, grad_up) if activate_left else (grad_up, grad_gate), dim))


KERNELS: dict[str, Callable[..., None]] = {
    "aclnnRmsNorm": rms_norm,
    "aclnnAddRmsNorm": add_rms_norm,
    "aclnnRmsNormGrad": rms_norm_grad,
    "aclnnRotaryPositionEmbedding": rotary,
    "aclnnRotaryPositionEmbeddingGrad": rotary_grad,
    "aclnnSwiGlu": swiglu,
    "aclnnSwiGluGrad": swiglu_grad,
    "aclnnGeGluV3": geglu,
    "aclnnGeGluV3Backward": geglu_grad,
}
