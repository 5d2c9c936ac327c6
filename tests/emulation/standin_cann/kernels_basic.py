"""aclnn kernels that torch_npu calls in ordinary training: fills, casts, dropout masks, the fused optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from standin_cann.opapi import require
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def zero(x: Tensor) -> None:
    x.zero_()


def one(x: Tensor) -> None:
    x.fill_(1)


def fill(x: Tensor, value: Any) -> None:
    x.fill_(value)


def copy(x: Tensor, source: Tensor) -> None:
    x.copy_(source)


def cast(x: Tensor, to: torch.dtype, out: Tensor) -> None:
    require(out.dtype == to, f"cast to {to} into {out.dtype}")
    out.copy_(x)


def cat(xs: list[Tensor], dim: int, out: Tensor) -> None:
    out.copy_(torch.cat(xs, dim))


def pad(x: Tensor, padding: list[int], value: Any, out: Tensor) -> None:
    out.copy_(torch.nn.functional.pad(x, padding, value=value))


BITS = torch.arange(8, dtype=torch.uint8)


def generate_mask(
    shape: list[int], probability: float, seed: int, offset: int, of: torch.dtype, mask: Tensor
) -> None:
    """One bit for each element, 1 where it is kept, eight to a byte; the same for the same seed and offset."""
    generator = torch.Generator().manual_seed((seed * 6364136223846793005 + offset) % 2**63)
    kept = torch.rand(math.prod(shape), generator=generator) >= probability
    bits = torch.zeros(mask.numel() * 8, dtype=torch.uint8)
    bits[: kept.numel()] = kept
    mask.copy_((bits.view(-1, 8) << BITS).sum(1).view(mask.shape))


def kept_elements(mask: Tensor, shape: torch.Size) -> Tensor:
    """The bits of a mask as bools of ``shape``."""
    return (mask.view(-1, 1) >> BITS & 1).flatten()[: shape.numel()].view(shape).bool()


def apply_mask(x: Tensor, mask: Tensor, probability: float, out: Tensor) -> None:
    out.copy_(torch.where(kept_elements(mask, x.shape), x.float() / (1 - probability), 0.0))


def adamw(
    parameter: Tensor,
    first: Tensor,
    second: Tensor,
    largest: Tensor | None,
    grad: Tensor,
    step: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    epsilon: float,
    amsgrad: bool,
    maximize: bool,
) -> None:
    """In place; ``step`` counts the updates before this one."""
    require(parameter.dtype in FLOATS, f"parameters are float32, bfloat16 or float16, not {parameter.dtype}")
    require(parameter.dtype == first.dtype == second.dtype, "parameter and moments have one dtype")
    require(
        parameter.shape == first.shape == second.shape == grad.shape, "parameter, moments and gradient have one shape"
    )
    require(step.numel() == 1 and step.dtype in (torch.float32, torch.int64), "step is one float32 or int64 number")
    require(not amsgrad or largest is not None, "amsgrad needs the largest second moments")
    count = step.item() + 1
    g = -grad.float() if maximize else grad.float()
    m = first.float().lerp(g, 1 - beta1)
    v = second.float() * beta2 + g * g * (1 - beta2)
    first.copy_(m)
    second.copy_(v)
    if amsgrad and largest is not None:
        v = torch.maximum(v, largest.float())
        largest.copy_(v)
    scale = (v / (1 - beta2**count)).sqrt() + epsilon
    parameter.copy_(parameter.float() * (1 - lr * weight_decay) - lr * (m / (1 - beta1**count)) / scale)


KERNELS: dict[str, Callable[..., None]] = {
    "aclnnInplaceZero": zero,
    "aclnnInplaceOne": one,
    "aclnnInplaceFillScalar": fill,
    "aclnnInplaceCopy": copy,
    "aclnnCast": cast,
    "aclnnCat": cat,
    "aclnnConstantPadNd": pad,
    "aclnnDropoutGenMaskV2": generate_mask,
    "aclnnDropoutDoMask": apply_mask,
    "aclnnApplyAdamWV2": adamw,
}
