"""``rms_norm`` and ``add_rms_norm`` in Triton, in one pass over memory forward and one backward.

A program holds whole rows, one wide or several narrow, and walks over its share of them with the weight in registers,
fetching the next rows while it works on these. Backward needs only the input (of ``add_rms_norm`` the sum) and one
number per row; each program adds up its rows' part of the weight's gradient by itself and a last small sum joins them
in a fixed order, so that two runs give the same bits. Zhang and Sennrich, 2019, equation 4.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.launch import Launch
from evocore.ops.rms_norm import AddRMSNorm, RMSNorm

_HELD = 8192
"""Elements of a tile up to which a program holds the weight and fetches ahead: beyond, its registers are full."""
_FORWARD, _BACKWARD = 2 * _HELD, _HELD
"""Elements that the programs of a unit hold at once; more programs would wait for the whole share of others."""
_AHEAD = 96 * 1024
"""Bytes of shared memory for tiles fetched ahead, so that two programs fit on a unit that has 227 KB."""


def rms_norm(launch: Launch) -> RMSNorm:
    def call(x_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
        y_TD: Tensor = _RMSNorm.apply(x_TD, weight_D, eps, unit_offset, launch)
        return y_TD

    return call


def add_rms_norm(launch: Launch) -> AddRMSNorm:
    def call(
        x_TD: Tensor, residual_TD: Tensor, weight_D: Tensor, *, eps: float, unit_offset: bool = False
    ) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = _AddRMSNorm.apply(x_TD, residual_TD, weight_D, eps, unit_offset, launch)
        return both

    return call


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float, unit_offset: bool, launch: Launch) -> Tensor:
        x_TD = _rows(x_TD)
        y_TD, rstd_T = _normalise(x_TD, None, None, weight_D, eps, unit_offset, launch)
        ctx.save_for_backward(x_TD, weight_D, rstd_T)
        ctx.unit_offset, ctx.launch = unit_offset, launch
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x_TD, weight_D, rstd_T = ctx.saved_tensors
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        grad_x_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device) if wants_x else None
        grad_weight_D = _differentiate(
            grad_TD, None, x_TD, weight_D, rstd_T, grad_x_TD, None, wants_weight, ctx.unit_offset, ctx.launch
        )
        return grad_x_TD, grad_weight_D, None, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        residual_TD: Tensor,
        weight_D: Tensor,
        eps: float,
        unit_offset: bool,
        launch: Launch,
    ) -> tuple[Tensor, Tensor]:
        s_TD = torch.empty(residual_TD.shape, dtype=residual_TD.dtype, device=residual_TD.device)
        y_TD, rstd_T = _normalise(_rows(x_TD), _rows(residual_TD), s_TD, weight_D, eps, unit_offset, launch)
        ctx.save_for_backward(s_TD, weight_D, rstd_T)
        ctx.set_materialize_grads(False)
        ctx.unit_offset, ctx.launch, ctx.x_dtype = unit_offset, launch, x_TD.dtype
        return y_TD, s_TD

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y_TD: Tensor | None, grad_s_TD: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        """The gradients of both summands are one tensor where they have one dtype, as in the backward of ``a + b``.

        That is safe: autograd adds into a gradient in place only if nothing else holds it.
        """
        s_TD, weight_D, rstd_T = ctx.saved_tensors
        wants_x, wants_residual, wants_weight = ctx.needs_input_grad[:3]
        if grad_y_TD is None:
            grad_x_TD = grad_s_TD.to(ctx.x_dtype) if grad_s_TD is not None and wants_x else None
            return grad_x_TD, grad_s_TD if wants_residual else None, None, None, None, None
        wanted = [dtype for dtype, wants in ((ctx.x_dtype, wants_x), (s_TD.dtype, wants_residual)) if wants]
        made = {dtype: torch.empty(s_TD.shape, dtype=dtype, device=s_TD.device) for dtype in wanted}
        first_TD, second_TD, *_ = (*made.values(), None, None)
        grad_weight_D = _differentiate(
            grad_y_TD,
            grad_s_TD,
            s_TD,
            weight_D,
            rstd_T,
            first_TD,
            second_TD,
            wants_weight,
            ctx.unit_offset,
            ctx.launch,
        )
        grad_x_TD = made[ctx.x_dtype] if wants_x else None
        return grad_x_TD, made[s_TD.dtype] if wants_residual else None, grad_weight_D, None, None, None


def _normalise(
    x_TD: Tensor,
    residual_TD: Tensor | None,
    s_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    unit_offset: bool,
    launch: Launch,
) -> tuple[Tensor, Tensor]:
    """The result and ``1 / rms`` of each row in float32; the sum goes to ``s_TD``."""
    tokens, width = x_TD.shape
    y_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device)
    rstd_T = torch.empty(tokens, dtype=torch.float32, device=x_TD.device)
    read = [x for x in (x_TD, residual_TD) if x is not None]
    block, rows, stages = _tile(launch, width, read, ahead=1)
    programs = _programs(launch, x_TD.device, tokens, rows, _FORWARD // (block * rows))
    _forward[(programs,)](
        x_TD,
        residual_TD,
        weight_D.contiguous(),
        y_TD,
        s_TD,
        rstd_T,
        x_TD.stride(0),
        0 if residual_TD is None else residual_TD.stride(0),
        tokens,
        width,
        eps,
        UNIT_OFFSET=unit_offset,
        HOLD=block <= _HELD,
        ROWS=rows,
        BLOCK=block,
        STAGES=stages,
        num_warps=launch.warps(block * rows),
    )
    return y_TD, rstd_T


def _differentiate(
    grad_y_TD: Tensor,
    grad_s_TD: Tensor | None,
    s_TD: Tensor,
    weight_D: Tensor,
    rstd_T: Tensor,
    grad_x_TD: Tensor | None,
    grad_residual_TD: Tensor | None,
    wants_weight: bool,
    unit_offset: bool,
    launch: Launch,
) -> Tensor | None:
    """Fill the gradients of the normalised input, one per dtype that is wanted; return the weight's."""
    tokens, width = s_TD.shape
    grad_y_TD, grad_s_TD = _rows(grad_y_TD), None if grad_s_TD is None else _rows(grad_s_TD)
    read = [x for x in (grad_y_TD, s_TD, grad_s_TD) if x is not None]
    block, rows, stages = _tile(launch, width, read, ahead=2)
    programs = _programs(launch, s_TD.device, tokens, rows, _BACKWARD // (block * rows))
    partial_PD = torch.empty(programs, width, dtype=torch.float32, device=s_TD.device) if wants_weight else None
    _backward[(programs,)](
        grad_y_TD,
        grad_s_TD,
        s_TD,
        weight_D.contiguous(),
        rstd_T,
        grad_x_TD,
        grad_residual_TD,
        partial_PD,
        grad_y_TD.stride(0),
        0 if grad_s_TD is None else grad_s_TD.stride(0),
        s_TD.stride(0),
        tokens,
        width,
        UNIT_OFFSET=unit_offset,
        HOLD=block <= _HELD,
        ROWS=rows,
        BLOCK=block,
        STAGES=stages,
        num_warps=launch.warps(4 * block * rows),  # holds input, gradient, weight and the weight's gradient
    )
    return None if partial_PD is None else partial_PD.sum(0).to(weight_D.dtype)


def _tile(launch: Launch, width: int, read: list[Tensor], ahead: int) -> tuple[int, int, int]:
    """Columns and rows of a tile, and the stages of its pipeline: one more than the tiles fetched ahead."""
    block = triton.next_power_of_2(width)
    rows = max(1, min(launch.elements, _HELD) // block)
    fetched = block * rows * sum(x.element_size() for x in read)
    return block, rows, 1 + (min(ahead, _AHEAD // fetched) if block <= _HELD else 0)


def _programs(launch: Launch, device: torch.device, tokens: int, rows: int, per_unit: int) -> int:
    return min(launch.programs(device, triton.cdiv(tokens, rows)), launch.units(device) * max(1, per_unit))


def _rows(x_TD: Tensor) -> Tensor:
    """Rows may lie anywhere, the elements of one side by side."""
    return x_TD if x_TD.stride(-1) == 1 else x_TD.contiguous()


@triton.jit
def _scale(weight_ptr: tl.tensor, column: tl.tensor, D: tl.tensor, UNIT_OFFSET: tl.constexpr) -> tl.tensor:
    scale = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    if UNIT_OFFSET:
        scale += 1.0
    return scale


@triton.jit
def _forward(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    y_ptr: tl.tensor,
    s_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    x_stride: tl.tensor,
    residual_stride: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    eps: tl.tensor,
    UNIT_OFFSET: tl.constexpr,
    HOLD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    column = tl.arange(0, BLOCK)[None, :]
    if HOLD:
        scale = _scale(weight_ptr, column, D, UNIT_OFFSET)
    for tile in tl.range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < T) & (column < D)
        x = tl.load(x_ptr + row * x_stride + column, mask=mask, other=0.0).to(tl.float32)
        if residual_ptr is not None:
            residual = tl.load(residual_ptr + row * residual_stride + column, mask=mask, other=0.0)
            s = (x + residual.to(tl.float32)).to(s_ptr.dtype.element_ty)
            tl.store(s_ptr + row * D + column, s, mask=mask)
            x = s.to(tl.float32)  # backward sees the rounded sum, so forward normalises it too
        rstd = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / D + eps)
        tl.store(rstd_ptr + row, rstd, mask=row < T)
        if not HOLD:
            scale = _scale(weight_ptr, column, D, UNIT_OFFSET)
        tl.store(y_ptr + row * D + column, (x * rstd * scale).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    grad_y_ptr: tl.tensor,
    grad_s_ptr: tl.tensor,
    s_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    grad_x_ptr: tl.tensor,
    grad_residual_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    grad_y_stride: tl.tensor,
    grad_s_stride: tl.tensor,
    s_stride: tl.tensor,
    T: tl.tensor,
    D: tl.tensor,
    UNIT_OFFSET: tl.constexpr,
    HOLD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """With n = s * rstd: ``rstd * (g * w - n * mean(g * w * n))``, and ``sum(g * n)`` for the weight."""
    column = tl.arange(0, BLOCK)[None, :]
    if HOLD:
        scale = _scale(weight_ptr, column, D, UNIT_OFFSET)
    grad_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0), num_stages=STAGES):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        mask = (row < T) & (column < D)
        rstd = tl.load(rstd_ptr + row, mask=row < T, other=0.0)
        normed = tl.load(s_ptr + row * s_stride + column, mask=mask, other=0.0).to(tl.float32) * rstd
        grad = tl.load(grad_y_ptr + row * grad_y_stride + column, mask=mask, other=0.0).to(tl.float32)
        if partial_ptr is not None:
            grad_weight += grad * normed
        if grad_x_ptr is not None:
            if not HOLD:
                scale = _scale(weight_ptr, column, D, UNIT_OFFSET)
            grad *= scale
            along = tl.sum(grad * normed, axis=1, keep_dims=True) / D
            grad = (grad - normed * along) * rstd
            if grad_s_ptr is not None:
                grad += tl.load(grad_s_ptr + row * grad_s_stride + column, mask=mask, other=0.0).to(tl.float32)
            tl.store(grad_x_ptr + row * D + column, grad.to(grad_x_ptr.dtype.element_ty), mask=mask)
            if grad_residual_ptr is not None:
                here = grad_residual_ptr + row * D + column
                tl.store(here, grad.to(grad_residual_ptr.dtype.element_ty), mask=mask)
    if partial_ptr is not None:
        here = partial_ptr + tl.program_id(0) * D + column
        tl.store(here, tl.sum(grad_weight, axis=0, keep_dims=True), mask=column < D)
