"""``attention`` and ``attention_block`` in Triton: flash attention over packed documents, deterministic.

Here the kernels get their arguments; ``triton_forward`` and ``triton_backward`` are the kernels.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.attention.schedule import FIELDS, Side, TileTables
from evocore.kernels.attention.triton_backward import keys_kernel, queries_kernel, statistics_kernel
from evocore.kernels.attention.triton_forward import forward_kernel
from evocore.kernels.launch import AttentionTiles, Launch
from evocore.ops.attention import Attention, AttentionBlock, CuSeqlens

SMALLEST = 16
"""Elements of the smallest side of a product of tiles."""


class Problem(NamedTuple):
    """The options of ``attention`` in one bundle; ``window`` is None unless ``causal``."""

    q_documents: CuSeqlens
    k_documents: CuSeqlens
    causal: bool
    window: int | None
    softcap: float | None
    scale: float | None

    def factor(self, head_dim: int) -> float:
        """Of the scores."""
        return 1 / math.sqrt(head_dim) if self.scale is None else self.scale

    def terms(self, factor: float) -> tuple[float, float, int]:
        """``inner``, ``outer`` and ``window`` of the kernels."""
        if self.softcap is None:
            return 0.0, factor * math.log2(math.e), self.window or 0
        return factor / self.softcap, self.softcap * math.log2(math.e), self.window or 0


def attention(launch: Launch) -> Attention:
    """Make ``attention`` for a kind of device."""
    kernels = FlashAttention(launch)

    def flash_attention(
        q_TNH: Tensor,
        k_SKH: Tensor,
        v_SKH: Tensor,
        *,
        q_documents: CuSeqlens,
        k_documents: CuSeqlens,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
    ) -> Tensor:
        problem = Problem(q_documents, k_documents, causal, window if causal else None, softcap, scale)
        mixed_TNH: Tensor = _FlashAttention.apply(q_TNH, k_SKH, v_SKH, kernels, problem)
        return mixed_TNH

    return flash_attention


def attention_block(launch: Launch) -> AttentionBlock:
    """Make ``attention_block`` for a kind of device."""
    kernels = FlashAttention(launch)

    def forward(
        q_TNH: Tensor,
        k_SKH: Tensor,
        v_SKH: Tensor,
        *,
        q_documents: CuSeqlens,
        k_documents: CuSeqlens,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        problem = Problem(q_documents, k_documents, causal, window if causal else None, softcap, scale)
        return kernels.forward(q_TNH, k_SKH, v_SKH, problem)

    def backward(
        grad_TNH: Tensor,
        q_TNH: Tensor,
        k_SKH: Tensor,
        v_SKH: Tensor,
        out_TNH: Tensor,
        lse_TN: Tensor,
        *,
        q_documents: CuSeqlens,
        k_documents: CuSeqlens,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        problem = Problem(q_documents, k_documents, causal, window if causal else None, softcap, scale)
        statistics = kernels.statistics(grad_TNH, out_TNH, lse_TN)
        grad_q_TNH = kernels.grad_of_queries(grad_TNH, q_TNH, k_SKH, v_SKH, statistics, problem)
        return grad_q_TNH, *kernels.grads_of_keys(grad_TNH, q_TNH, k_SKH, v_SKH, statistics, problem)

    return AttentionBlock(forward, backward)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, kernels: FlashAttention, problem: Problem
    ) -> Tensor:
        out_TNH, lse_TN = kernels.forward(q_TNH, k_SKH, v_SKH, problem)
        ctx.save_for_backward(q_TNH, k_SKH, v_SKH, out_TNH, lse_TN)
        ctx.kernels, ctx.problem = kernels, problem
        return out_TNH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor | None, ...]:
        q_TNH, k_SKH, v_SKH, out_TNH, lse_TN = ctx.saved_tensors
        kernels, problem = ctx.kernels, ctx.problem
        statistics = kernels.statistics(grad_TNH, out_TNH, lse_TN)
        grad_q = grad_k = grad_v = None
        if ctx.needs_input_grad[0]:
            grad_q = kernels.grad_of_queries(grad_TNH, q_TNH, k_SKH, v_SKH, statistics, problem)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_k, grad_v = kernels.grads_of_keys(grad_TNH, q_TNH, k_SKH, v_SKH, statistics, problem)
        return grad_q, grad_k, grad_v, None, None


class FlashAttention:
    """The kernels with their launch parameters, and the tables of tiles that their calls share."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._tables = TileTables()

    def forward(self, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """``AttentionForward``; the log-sum-exp is the view of a contiguous ``[N, T]``."""
        q, k, v = _dense_rows(q_TNH), _dense_rows(k_SKH), _dense_rows(v_SKH)
        out_TNH = q.new_empty(q.shape)
        lse_NT = q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)
        tiles = self._launch.attention_forward(_width(q), q.itemsize)
        table = self._table("queries", tiles.queries, problem, q.device)
        factor = problem.factor(q.shape[2])
        if len(table):
            forward_kernel[self._grid(q, len(table) * q.shape[1], tiles)](
                q, k, v, out_TNH, lse_NT, table, len(table), q.shape[1], q.shape[1] // k.shape[1],
                *_strides(q, k, v, out_TNH), lse_NT.stride(0), *problem.terms(abs(factor)),
                NEGATE=factor < 0, **_constants(q, problem, tiles),
            )  # fmt: skip
        return out_TNH, lse_NT.T

    def statistics(self, grad_TNH: Tensor, out_TNH: Tensor, lse_TN: Tensor) -> Tensor:
        """``base`` and ``delta`` of ``statistics_kernel``, ``[2, N, T]`` in float32."""
        grad, out = _dense_rows(grad_TNH), _dense_rows(out_TNH)
        tokens, heads, head_dim = grad.shape
        result_2NT = grad.new_empty(2, heads, tokens, dtype=torch.float32)
        width = _width(grad)
        rows = max(1, self._launch.elements // width)
        tasks = -(-tokens // rows) * heads
        if tasks:
            statistics_kernel[(self._launch.programs(grad.device, tasks),)](
                grad, out, lse_TN, *result_2NT, tokens, heads, *_strides(grad, out), *lse_TN.stride(),
                H=head_dim, WIDTH=width, ROWS=rows, num_warps=self._launch.warps(rows * width),
            )  # fmt: skip
        return result_2NT

    def grad_of_queries(
        self, grad_TNH: Tensor, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, statistics_2NT: Tensor, problem: Problem
    ) -> Tensor:
        """Gradient of ``q_TNH``."""
        grad, q, k, v = (_dense_rows(x) for x in (grad_TNH, q_TNH, k_SKH, v_SKH))
        grad_q_TNH = q.new_empty(q.shape)
        tiles = self._launch.attention_backward(_width(q), q.itemsize).for_queries
        table = self._table("queries", tiles.queries, problem, q.device)
        factor = problem.factor(q.shape[2])
        if len(table):
            queries_kernel[self._grid(q, len(table) * q.shape[1], tiles)](
                grad, q, k, v, *statistics_2NT, grad_q_TNH, table,
                len(table), q.shape[0], q.shape[1], q.shape[1] // k.shape[1],
                *_strides(grad, q, k, v, grad_q_TNH), factor, *problem.terms(factor),
                **_constants(q, problem, tiles),
            )  # fmt: skip
        return grad_q_TNH

    def grads_of_keys(
        self, grad_TNH: Tensor, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, statistics_2NT: Tensor, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ``k_SKH`` and ``v_SKH``."""
        grad, q, k, v = (_dense_rows(x) for x in (grad_TNH, q_TNH, k_SKH, v_SKH))
        grad_k_SKH, grad_v_SKH = k.new_empty(k.shape), v.new_empty(v.shape)
        tiles = self._launch.attention_backward(_width(q), q.itemsize).for_keys
        table = self._table("keys", tiles.keys, problem, q.device)
        factor = problem.factor(q.shape[2])
        if len(table):
            keys_kernel[self._grid(q, len(table) * k.shape[1], tiles)](
                grad, q, k, v, *statistics_2NT, grad_k_SKH, grad_v_SKH, table,
                len(table), q.shape[0], k.shape[1], q.shape[1] // k.shape[1],
                *_strides(grad, q, k, v, grad_k_SKH, grad_v_SKH), factor, *problem.terms(factor),
                **_constants(q, problem, tiles),
            )  # fmt: skip
        return grad_k_SKH, grad_v_SKH

    def _table(self, side: Side, size: int, problem: Problem, device: torch.device) -> Tensor:
        q_documents, k_documents, causal, window, *_ = problem
        return self._tables.of(side, size, q_documents, k_documents, causal, window, device)

    def _grid(self, q: Tensor, tasks: int, tiles: AttentionTiles) -> tuple[int]:
        return (self._launch.attention_programs(q.device, tasks, tiles),)


def _constants(q: Tensor, problem: Problem, tiles: AttentionTiles) -> dict[str, Any]:
    """What the kernels are compiled for."""
    return {
        "CAUSAL": problem.causal,
        "WINDOW": problem.window is not None,
        "SOFTCAP": problem.softcap is not None,
        "EXACT": q.dtype == torch.float32,
        "H": q.shape[2],
        "WIDTH": _width(q),
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "FIELDS": FIELDS,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    }


def _width(x_TNH: Tensor) -> int:
    """The head size as the tiles have it."""
    return max(SMALLEST, 1 << (x_TNH.shape[2] - 1).bit_length())


def _dense_rows(x_TNH: Tensor) -> Tensor:
    """``x_TNH`` with its last dimension dense in memory: views into a fused projection are, and stay as they are."""
    return x_TNH if x_TNH.stride(2) == 1 else x_TNH.contiguous()


def _strides(*tensors: Tensor) -> list[int]:
    """Of tokens and heads of each."""
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]
