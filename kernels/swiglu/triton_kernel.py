"""``swiglu`` in Triton, and what any gated linear unit takes besides its activation.

One pass forward over gate and up, one backward over these and the gradient: the activation is computed again, so
nothing else is kept. Gate and up may be halves of one projection; rows are read where they lie. Shazeer, 2020.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.launch import Launch
from evocore.ops.glu import SwiGLU

_NARROW = 256
"""Columns of a tile that are enough for wide loads."""


def swiglu(launch: Launch) -> SwiGLU:
    def call(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
        return gated(gate_TF, up_TF, silu, launch)

    return call


def gated(gate_TF: Tensor, up_TF: Tensor, activation: Any, launch: Launch) -> Tensor:
    """``activation(gate) * up``.

    Args:
        gate_TF, up_TF: ``[T, F]`` of one dtype, any strides.
        activation: a ``@triton.jit`` function, float32 -> its value and its derivative.
    """
    y_TF: Tensor = _Gated.apply(gate_TF, up_TF, activation, launch)
    return y_TF


@triton.jit
def silu(gate: tl.tensor) -> tl.tensor:
    sigmoid = tl.sigmoid(gate)
    value = gate * sigmoid
    return value, sigmoid + value * (1 - sigmoid)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_TF: Tensor, up_TF: Tensor, activation: Any, launch: Launch) -> Tensor:
        gate_TF, up_TF = _rows(gate_TF), _rows(up_TF)
        ctx.save_for_backward(gate_TF, up_TF)
        ctx.activation, ctx.launch = activation, launch
        tokens, width = gate_TF.shape
        y_TF = torch.empty(tokens, width, dtype=gate_TF.dtype, device=gate_TF.device)
        rows, block, tasks = _tiles(tokens, width, launch)
        _forward[(launch.programs(y_TF.device, tasks),)](
            gate_TF,
            up_TF,
            y_TF,
            gate_TF.stride(0),
            up_TF.stride(0),
            tokens,
            width,
            ACTIVATION=activation,
            ROWS=rows,
            BLOCK=block,
            num_warps=launch.warps(rows * block),
        )
        return y_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        gate_TF, up_TF = ctx.saved_tensors
        grad_TF, launch = _rows(grad_TF), ctx.launch
        tokens, width = grad_TF.shape
        grad_gate_TF, grad_up_TF = (
            torch.empty(tokens, width, dtype=grad_TF.dtype, device=grad_TF.device) if wanted else None
            for wanted in ctx.needs_input_grad[:2]
        )
        rows, block, tasks = _tiles(tokens, width, launch)
        _backward[(launch.programs(grad_TF.device, tasks),)](
            grad_TF,
            gate_TF,
            up_TF,
            grad_gate_TF,
            grad_up_TF,
            grad_TF.stride(0),
            gate_TF.stride(0),
            up_TF.stride(0),
            tokens,
            width,
            ACTIVATION=ctx.activation,
            ROWS=rows,
            BLOCK=block,
            num_warps=launch.warps(rows * block),
        )
        return grad_gate_TF, grad_up_TF, None, None


def _tiles(tokens: int, width: int, launch: Launch) -> tuple[int, int, int]:
    """Rows and columns of a tile, and how many tiles: wide, unless more than a quarter of a row would be padding."""
    block = min(launch.elements, triton.next_power_of_2(width))
    while block > _NARROW and 4 * block * triton.cdiv(width, block) > 5 * width:
        block //= 2
    rows = launch.elements // block
    return rows, block, triton.cdiv(tokens, rows) * triton.cdiv(width, block)


def _rows(x_TF: Tensor) -> Tensor:
    """Rows may lie anywhere, the elements of one side by side."""
    return x_TF if x_TF.stride(-1) == 1 else x_TF.contiguous()


@triton.jit
def _forward(
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    y_ptr: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    T: tl.tensor,
    F: tl.tensor,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    across = tl.cdiv(F, BLOCK)
    for tile in range(tl.program_id(0), tl.cdiv(T, ROWS) * across, tl.num_programs(0)):
        row = tl.cast(tile // across, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tile % across * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = (row < T) & (column < F)
        gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
        value, _ = ACTIVATION(gate)
        tl.store(y_ptr + row * F + column, (value * up).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward(
    grad_ptr: tl.tensor,
    gate_ptr: tl.tensor,
    up_ptr: tl.tensor,
    grad_gate_ptr: tl.tensor,
    grad_up_ptr: tl.tensor,
    grad_stride: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    T: tl.tensor,
    F: tl.tensor,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    across = tl.cdiv(F, BLOCK)
    for tile in range(tl.program_id(0), tl.cdiv(T, ROWS) * across, tl.num_programs(0)):
        row = tl.cast(tile // across, tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tile % across * BLOCK + tl.arange(0, BLOCK)[None, :]
        mask = (row < T) & (column < F)
        grad = tl.load(grad_ptr + row * grad_stride + column, mask=mask, other=0.0).to(tl.float32)
        gate = tl.load(gate_ptr + row * gate_stride + column, mask=mask, other=0.0).to(tl.float32)
        value, slope = ACTIVATION(gate)
        if grad_gate_ptr is not None:
            up = tl.load(up_ptr + row * up_stride + column, mask=mask, other=0.0).to(tl.float32)
            here = grad_gate_ptr + row * F + column
            tl.store(here, (grad * up * slope).to(grad_gate_ptr.dtype.element_ty), mask=mask)
        if grad_up_ptr is not None:
            here = grad_up_ptr + row * F + column
            tl.store(here, (grad * value).to(grad_up_ptr.dtype.element_ty), mask=mask)
