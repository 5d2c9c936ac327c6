"""``rotary`` in Triton, in one pass; backward is the same pass over the gradient with the opposite angles.

A tile is some tokens by some heads, so that a token's cosines and sines are read once for several heads. Queries and
keys are mostly views into one fused projection: heads are read where they lie. Nothing but the angles is kept. The
gradient goes to a tensor of its own, since autograd may still hold the incoming one. Su et al., 2021, equation 34.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.launch import Launch
from evocore.ops.rotary import Rotary


def rotary(launch: Launch) -> Rotary:
    def call(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, interleaved: bool = False) -> Tensor:
        rotated_TNH: Tensor = _Rotary.apply(x_TNH, cos_TP, sin_TP, interleaved, launch)
        return rotated_TNH

    return call


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, interleaved: bool, launch: Launch) -> Tensor:
        ctx.save_for_backward(cos_TP, sin_TP)
        ctx.interleaved, ctx.launch = interleaved, launch
        return _turn(x_TNH, cos_TP, sin_TP, interleaved, False, launch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor, None, None, None, None]:
        cos_TP, sin_TP = ctx.saved_tensors
        return _turn(grad_TNH, cos_TP, sin_TP, ctx.interleaved, True, ctx.launch), None, None, None, None


def _turn(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, interleaved: bool, inverse: bool, launch: Launch) -> Tensor:
    """Rotate by the angles, or by their opposites if ``inverse``."""
    x_TNH, cos_TP, sin_TP = _rows(x_TNH), _rows(cos_TP), _rows(sin_TP)
    (tokens, count, size), pairs = x_TNH.shape, cos_TP.shape[-1]
    y_TNH = torch.empty(x_TNH.shape, dtype=x_TNH.dtype, device=x_TNH.device)
    rest = size - 2 * pairs
    padded = triton.next_power_of_2(pairs)
    most = launch.elements // padded  # heads of twice the elements: one tensor is read here where others read two
    heads = max(1, min(count & -count, most))  # a power of two that divides their number
    rows = max(1, most // heads)
    tasks = triton.cdiv(tokens, rows) * triton.cdiv(count, heads)
    _rotate[(launch.programs(x_TNH.device, tasks),)](
        x_TNH,
        cos_TP,
        sin_TP,
        y_TNH,
        x_TNH.stride(0),
        x_TNH.stride(1),
        cos_TP.stride(0),
        sin_TP.stride(0),
        tokens,
        count,
        size,
        pairs,
        INTERLEAVED=interleaved,
        INVERSE=inverse,
        TOKENS=rows,
        HEADS=heads,
        PAIRS=padded,
        REST=triton.next_power_of_2(rest) if rest else 0,
        num_warps=launch.warps(rows * heads * 2 * padded),
    )
    return y_TNH


def _rows(x: Tensor) -> Tensor:
    """Rows may lie anywhere, the elements of one side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


@triton.jit
def _rotate(
    x_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    y_ptr: tl.tensor,
    token_stride: tl.tensor,
    head_stride: tl.tensor,
    cos_stride: tl.tensor,
    sin_stride: tl.tensor,
    T: tl.tensor,
    N: tl.tensor,
    H: tl.tensor,
    P: tl.tensor,
    INTERLEAVED: tl.constexpr,
    INVERSE: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    PAIRS: tl.constexpr,
    REST: tl.constexpr,
) -> None:
    across = tl.cdiv(N, HEADS)
    pair = tl.arange(0, PAIRS)[None, None, :]
    for tile in range(tl.program_id(0), tl.cdiv(T, TOKENS) * across, tl.num_programs(0)):
        token = tl.cast(tile // across, tl.int64) * TOKENS + tl.arange(0, TOKENS)[:, None, None]
        head = tl.cast(tile % across, tl.int64) * HEADS + tl.arange(0, HEADS)[None, :, None]
        exists = (token < T) & (head < N)
        angles = (token < T) & (pair < P)
        cos = tl.load(cos_ptr + token * cos_stride + pair, mask=angles, other=0.0)
        sin = tl.load(sin_ptr + token * sin_stride + pair, mask=angles, other=0.0)
        if INVERSE:
            sin = -sin
        source = x_ptr + token * token_stride + head * head_stride
        target = y_ptr + (token * N + head) * H
        if INTERLEAVED:  # whole heads are read and written, and taken apart in registers
            feature = tl.arange(0, 2 * PAIRS)[None, None, :]
            mask = exists & (feature < 2 * P)
            x = tl.load(source + feature, mask=mask, other=0.0).to(tl.float32)
            a, b = tl.split(tl.reshape(x, (TOKENS, HEADS, PAIRS, 2)))
            turned = tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), (TOKENS, HEADS, 2 * PAIRS))
            tl.store(target + feature, turned.to(y_ptr.dtype.element_ty), mask=mask)
        else:
            mask = exists & (pair < P)
            a = tl.load(source + pair, mask=mask, other=0.0).to(tl.float32)
            b = tl.load(source + P + pair, mask=mask, other=0.0).to(tl.float32)
            tl.store(target + pair, (a * cos - b * sin).to(y_ptr.dtype.element_ty), mask=mask)
            tl.store(target + P + pair, (b * cos + a * sin).to(y_ptr.dtype.element_ty), mask=mask)
        if REST > 0:
            feature = 2 * P + tl.arange(0, REST)[None, None, :]
            mask = exists & (feature < H)
            tl.store(target + feature, tl.load(source + feature, mask=mask), mask=mask)
