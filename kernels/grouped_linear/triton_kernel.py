"""``grouped_linear`` in Triton: persistent programs that find their tile from the ends of the groups on the device.

The host knows neither how many tiles there are nor whose they are. Each program cuts the groups into tiles of rows
itself, all groups as one block of numbers, and counts which group a tile falls into: some hundred numbers, nothing
beside a tile's products, whereas a table of tiles would take half a dozen launches before each call. Rows of nobody
are one more group, whose sums have no terms.

R rows, E experts; in ``_products`` I inner and C columns stand for D and F in forward, for F and D in backward.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.launch import Launch
from evocore.ops.grouped_linear import GroupedLinear, Groups

BAND = 8
"""Tiles of rows that neighbouring programs take together, so that they read a tile of the weight from the cache."""


def grouped_linear(launch: Launch) -> GroupedLinear:
    """The kernel for one kind of device."""

    def linear(x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
        y_RF: Tensor = _GroupedLinear.apply(x_RD, weight_EFD, groups.ends_E, launch)
        return y_RF

    return linear


class _GroupedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RD: Tensor, weight_EFD: Tensor, ends_E: Tensor, launch: Launch) -> Tensor:
        ctx.save_for_backward(x_RD, weight_EFD, ends_E)
        ctx.launch = launch
        return _launch_products(x_RD, weight_EFD.mT, ends_E, launch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x_RD, weight_EFD, ends_E = ctx.saved_tensors
        grad_x_RD = grad_weight_EFD = None
        if ctx.needs_input_grad[0]:
            grad_x_RD = _launch_products(grad_RF, weight_EFD, ends_E, ctx.launch)
        if ctx.needs_input_grad[1]:
            grad_weight_EFD = _launch_weight_gradients(grad_RF, x_RD, ends_E, ctx.launch)
        return grad_x_RD, grad_weight_EFD, None, None


def _launch_products(a_RI: Tensor, b_EIC: Tensor, ends_E: Tensor, launch: Launch) -> Tensor:
    """``a[rows of e] @ b[e]``, and 0 in the rows of nobody."""
    a, (experts, inner, columns) = _dense_rows(a_RI), b_EIC.shape
    out_RC = a.new_empty(len(a), columns)
    tiles = launch.matmul(a.element_size())
    most_row_tiles = (
        triton.cdiv(len(a), tiles.rows) + experts
    )  # each group, that of nobody too, may end in part of one
    tasks = most_row_tiles * triton.cdiv(columns, tiles.columns)
    if out_RC.numel():
        _products[(launch.programs(a.device, tasks),)](
            a,
            b_EIC,
            out_RC,
            ends_E,
            len(a),
            columns,
            inner,
            experts,
            a.stride(0),
            *b_EIC.stride(),
            triton.next_power_of_2(experts + 1),
            tiles.rows,
            tiles.columns,
            tiles.inner,
            BAND,
            columns % tiles.columns == 0,
            inner % tiles.inner == 0,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return out_RC


def _launch_weight_gradients(grad_RF: Tensor, x_RD: Tensor, ends_E: Tensor, launch: Launch) -> Tensor:
    """``grad[rows of e].T @ x[rows of e]``, and 0 for empty groups."""
    grad, x, experts = _dense_rows(grad_RF), _dense_rows(x_RD), len(ends_E)
    outputs, inputs = grad.shape[1], x.shape[1]
    out_EFD = x.new_empty(experts, outputs, inputs)
    tiles = launch.matmul(x.element_size())
    tasks = experts * triton.cdiv(outputs, tiles.rows) * triton.cdiv(inputs, tiles.columns)
    if out_EFD.numel():
        _weight_gradients[(launch.programs(x.device, tasks),)](
            grad,
            x,
            out_EFD,
            ends_E,
            outputs,
            inputs,
            experts,
            grad.stride(0),
            x.stride(0),
            tiles.rows,
            tiles.columns,
            tiles.inner,
            BAND,
            outputs % tiles.rows == 0,
            inputs % tiles.columns == 0,
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return out_EFD


def _dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


@triton.jit
def _products(
    a_ptr,
    b_ptr,
    out_ptr,
    ends_ptr,
    rows,
    columns,
    inner,
    experts,
    a_stride,
    b_expert_stride,
    b_inner_stride,
    b_column_stride,
    GROUPS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BAND: tl.constexpr,
    EVEN_C: tl.constexpr,
    EVEN_I: tl.constexpr,
):
    """``out[rows of e] = a[rows of e] @ b[e]``, with the rows of nobody as group number E."""
    group = tl.arange(0, GROUPS)
    group_end = tl.load(ends_ptr + group, mask=group < experts, other=rows)
    group_start = tl.load(ends_ptr + tl.maximum(group - 1, 0), mask=(group > 0) & (group <= experts), other=0)
    group_start = tl.where(group > experts, rows, group_start)
    group_tiles = tl.cdiv(group_end - group_start, BLOCK_R)
    tiles_to = tl.cumsum(group_tiles, 0)
    row_tiles = tl.sum(group_tiles, 0)
    column_tiles = tl.cdiv(columns, BLOCK_C)

    for task in range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0)):
        row_tile, column_tile = _tile_in_band(task, row_tiles, column_tiles, BAND)
        expert = tl.sum((tiles_to <= row_tile).to(tl.int32), 0)
        mine = group == expert
        tiles_before = tl.sum(tl.where(mine, tiles_to - group_tiles, 0), 0)
        start = tl.sum(tl.where(mine, group_start, 0), 0)
        end = tl.sum(tl.where(mine, group_end, 0), 0)

        row = start + (row_tile - tiles_before) * BLOCK_R + tl.arange(0, BLOCK_R)
        column = column_tile * BLOCK_C + tl.arange(0, BLOCK_C)
        index = tl.arange(0, BLOCK_I)
        a_at = a_ptr + row.to(tl.int64)[:, None] * a_stride + index[None, :]
        b_at = b_ptr + expert.to(tl.int64) * b_expert_stride
        b_at += index.to(tl.int64)[:, None] * b_inner_stride + column.to(tl.int64)[None, :] * b_column_stride
        a_mask = (row < end)[:, None]
        b_mask = (column < columns)[None, :]
        acc = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
        for begin in range(0, tl.where(expert < experts, inner, 0), BLOCK_I):
            if EVEN_I:
                a = tl.load(a_at, mask=a_mask, other=0.0)
                b = tl.load(b_at) if EVEN_C else tl.load(b_at, mask=b_mask, other=0.0)
            else:
                left = index < inner - begin
                a = tl.load(a_at, mask=a_mask & left[None, :], other=0.0)
                b = tl.load(b_at, mask=b_mask & left[:, None], other=0.0)
            acc = tl.dot(a, b, acc, input_precision="ieee")
            a_at += BLOCK_I
            b_at += BLOCK_I * b_inner_stride
        out_at = out_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
        tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=a_mask & b_mask)


@triton.jit
def _weight_gradients(
    grad_ptr,
    x_ptr,
    out_ptr,
    ends_ptr,
    outputs,
    inputs,
    experts,
    grad_stride,
    x_stride,
    BLOCK_F: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BAND: tl.constexpr,
    EVEN_F: tl.constexpr,
    EVEN_D: tl.constexpr,
):
    """``out[e] = grad[rows of e].T @ x[rows of e]``."""
    output_tiles = tl.cdiv(outputs, BLOCK_F)
    input_tiles = tl.cdiv(inputs, BLOCK_D)
    expert_tiles = output_tiles * input_tiles
    for task in range(tl.program_id(0), experts * expert_tiles, tl.num_programs(0)):
        expert = task // expert_tiles
        output_tile, input_tile = _tile_in_band(task % expert_tiles, output_tiles, input_tiles, BAND)
        start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
        end = tl.load(ends_ptr + expert)

        row = start + tl.arange(0, BLOCK_R)
        f = output_tile * BLOCK_F + tl.arange(0, BLOCK_F)
        d = input_tile * BLOCK_D + tl.arange(0, BLOCK_D)
        grad_at = grad_ptr + row.to(tl.int64)[:, None] * grad_stride + f[None, :]
        x_at = x_ptr + row.to(tl.int64)[:, None] * x_stride + d[None, :]
        acc = tl.zeros((BLOCK_F, BLOCK_D), tl.float32)
        for begin in range(start, end, BLOCK_R):
            inside = (begin + tl.arange(0, BLOCK_R) < end)[:, None]
            grad = tl.load(grad_at, mask=inside if EVEN_F else inside & (f < outputs)[None, :], other=0.0)
            x = tl.load(x_at, mask=inside if EVEN_D else inside & (d < inputs)[None, :], other=0.0)
            acc = tl.dot(tl.trans(grad), x, acc, input_precision="ieee")
            grad_at += BLOCK_R * grad_stride
            x_at += BLOCK_R * x_stride
        out_at = out_ptr + (expert.to(tl.int64) * outputs + f.to(tl.int64)[:, None]) * inputs + d[None, :]
        tl.store(out_at, acc.to(out_ptr.dtype.element_ty), mask=(f < outputs)[:, None] & (d < inputs)[None, :])


@triton.jit
def _tile_in_band(task, row_tiles, column_tiles, BAND: tl.constexpr):
    """Row and column of a tile if bands of ``BAND`` rows of tiles are walked through one by one, down first."""
    first = task // (BAND * column_tiles) * BAND
    height = tl.minimum(BAND, row_tiles - first)
    within = task % (BAND * column_tiles)
    return first + within % height, within // height
