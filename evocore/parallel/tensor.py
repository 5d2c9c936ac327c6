"""Tensor parallelism: the ranks of a group share every layer, each with its heads or features (Shoeybi et al., 2019).

Three ways to share what lies between two layers, all with the same weights on each rank:

- ``mtp``: every rank has all tokens; results are all-reduced.
- ``msp``: each rank has its part of the tokens (Korthikanti et al., 2022); the input of a layer is gathered, its
  result reduce-scattered, which together moves the same bytes as an all-reduce. The gathered input is kept for the
  weights' gradients.
- ``fsp``: as msp, but the gathered input is dropped and gathered again in backward.

Gradients of a layer's input travel while those of its weights are computed.

Shapes: T tokens of the whole group, t those of this rank (T in mtp), D width, F this rank's outputs of a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evocore.nn.layers import Linear
from evocore.nn.projecting import apply_each, apply_one
from evocore.nn.roles import Role
from evocore.ops.collectives import FINISHED, Handle
from evocore.parallel.functions import (
    copy,
    gather,
    gathered,
    reduce_,
    scatter_sum,
    scattered_sum,
    start_gather,
    start_scatter_sum,
)
from evocore.parallel.groups import Group
from evocore.parallel.pipeline.deferral import WeightGradients, products

MODES = ("mtp", "msp", "fsp")


class TensorParallel:
    """``fan_out`` and ``fan_in`` of layers that hold this rank's part of the weights.

    Args:
        mode: see above.
        tensor: the ranks that share every layer.
        kv: those among them, neighbours, that share a key-value head because there are fewer of these than ranks;
            each computes a part of the head.
        gradients: takes those of the weights if they may be put off; otherwise they go by way of autograd.
    """

    def __init__(self, mode: str, tensor: Group, kv: Group, gradients: WeightGradients | None = None) -> None:
        assert mode in MODES, mode
        self.mode, self.tensor, self.kv, self._gradients = mode, tensor, kv, gradients

    def fan_out(self, x_tD: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
        """This rank's outputs ``[T, F]`` of each layer, for all tokens; segments "k" and "v" are whole heads."""
        if self.tensor.size == 1:
            return apply_each(x_tD, layers)
        if layers[0].role is Role.REPLICATED:
            return self._replicated(x_tD, layers)
        weights = [layer.weight for layer in layers]
        put_off = None if self._gradients is None else _PutOff(self._gradients, weights)
        biases = [layer.bias for layer in layers]
        outputs = list(_FanOut.apply(self.mode, self.tensor, put_off, x_tD, *weights, *biases))
        return outputs if self.kv.size == 1 else _with_whole_heads(outputs, layers, self.kv)

    def fan_in(self, x_TF: Tensor, layer: Linear) -> Tensor:
        """The layer's result ``[t, D]`` from this rank's inputs of all tokens; its bias is that of the whole."""
        if self.tensor.size == 1:
            return apply_one(x_TF, layer)
        # No function of its own: PyTorch's product keeps its input before it multiplies, so that recomputation, which
        # stops at the last kept tensor, skips a last product with the exchange behind it.
        if self._gradients is None:
            partial_TD = F.linear(x_TF, layer.weight)
        else:
            (partial_TD,) = products(x_TF, [layer.weight], [None], self._gradients)
        y_tD = reduce_(partial_TD, self.tensor) if self.mode == "mtp" else scatter_sum(partial_TD, self.tensor)
        return y_tD if layer.bias is None else y_tD + layer.bias

    def share(self, x_tF: Tensor) -> Tensor:
        """``[T, F]``: what all heads use, for all tokens."""
        return copy(x_tF, self.tensor) if self.mode == "mtp" else gather(x_tF, self.tensor)

    def _replicated(self, x_tD: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
        """Outputs ``[t, F]`` of layers that every rank has whole, for its own tokens."""
        if self._gradients is None:
            return apply_each(x_tD, layers)
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        return products(x_tD, weights, biases, self._gradients)


def start_input_sum(mode: str, grad_TD: Tensor, group: Group) -> tuple[Tensor, Handle]:
    """Sum over ranks the gradient of an input that all of them used: ``[T, D] -> [t, D]``.

    In mtp the sum is in ``grad_TD`` itself. It may be read once the handle was waited for.
    """
    if mode == "mtp":
        return grad_TD, group.all_reduce(grad_TD, asynchronous=True)
    return start_scatter_sum(grad_TD, group)


class _PutOff(NamedTuple):
    """Who takes the gradients of which weights."""

    gradients: WeightGradients
    weights: Sequence[nn.Parameter]


class _FanOut(torch.autograd.Function):
    """All products with one input: one exchange in forward (none in mtp), and in backward one more (fsp: two).

    Where gradients of weights are put off, so is the second exchange of fsp.
    """

    @staticmethod
    def forward(
        ctx: Any, mode: str, group: Group, put_off: _PutOff | None, x_tD: Tensor, *parameters: Tensor | None
    ) -> tuple[Tensor, ...]:
        weights, biases = _halves(parameters)
        x_TD = x_tD if mode == "mtp" else gathered(x_tD, group)
        needs_weights, _ = _halves(ctx.needs_input_grad[4:])
        kept = None if not any(needs_weights) else x_tD if mode == "fsp" else x_TD
        ctx.mode, ctx.group, ctx.put_off = mode, group, put_off
        ctx.save_for_backward(kept, *weights)
        return tuple(F.linear(x_TD, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, *weights = ctx.saved_tensors
        needs_weights, needs_biases = _halves(ctx.needs_input_grad[4:])
        arriving: Handle = FINISHED
        summed: Handle = FINISHED
        if ctx.mode == "fsp" and x_TD is not None and ctx.put_off is None:
            x_TD, arriving = start_gather(x_TD, ctx.group)
        grad_tD = None
        if ctx.needs_input_grad[3]:
            grad_TD = grads[0] @ weights[0]
            for grad_TF, weight in zip(grads[1:], weights[1:], strict=True):
                grad_TD.addmm_(grad_TF, weight)
            grad_tD, summed = start_input_sum(ctx.mode, grad_TD, ctx.group)
        arriving.wait()
        of_weights: list[Tensor | None] = [None] * len(grads)
        if ctx.put_off is not None:
            _put_off(ctx.put_off, x_TD, grads, ctx.group if ctx.mode == "fsp" else None)
        else:
            of_weights = [
                grad_TF.T @ x_TD if needs else None for grad_TF, needs in zip(grads, needs_weights, strict=True)
            ]
        of_biases = [grad_TF.sum(0) if needs else None for grad_TF, needs in zip(grads, needs_biases, strict=True)]
        summed.wait()
        return (None, None, None, grad_tD, *of_weights, *of_biases)


def _put_off(put_off: _PutOff, x: Tensor | None, grads: Sequence[Tensor], gathered_over: Group | None) -> None:
    """Deliver the gradients of the weights that need any, now or later."""

    def deliver() -> None:
        if x is not None:
            x_TD = x if gathered_over is None else gathered(x, gathered_over)
            for weight, grad_TF in zip(put_off.weights, grads, strict=True):
                if weight.requires_grad:
                    put_off.gradients.deliver(weight, grad_TF.T @ x_TD)

    put_off.gradients.do(deliver)


def _halves(of_parameters: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """What belongs to the weights, and to the biases behind them."""
    layers = len(of_parameters) // 2
    return of_parameters[:layers], of_parameters[layers:]


def _with_whole_heads(outputs: list[Tensor], layers: Sequence[Linear], group: Group) -> list[Tensor]:
    """Gather all segments "k" and "v" of all outputs at once."""
    pieces = [
        y_TF.split([length for _, length in layer.segments], dim=1)
        for y_TF, layer in zip(outputs, layers, strict=True)
    ]
    names = [[name for name, _ in layer.segments] for layer in layers]
    shared = [
        piece for row in zip(names, pieces, strict=True) for name, piece in zip(*row, strict=True) if _is_kv(name)
    ]
    if not shared:
        return outputs
    whole = iter(_WholeHeads.apply(group, *shared))
    joined = []
    for row in zip(names, pieces, strict=True):
        parts = [next(whole) if _is_kv(name) else piece for name, piece in zip(*row, strict=True)]
        joined.append(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
    return joined


def _is_kv(name: str) -> bool:
    return name in ("k", "v")


class _WholeHeads(torch.autograd.Function):
    """Each rank's part of the same heads -> the whole heads; gradients are summed over the ranks that use them.

    P pieces ``[T, h]`` of one width become P of ``[T, W h]``, in one exchange for all of them.
    """

    @staticmethod
    def forward(ctx: Any, group: Group, *pieces: Tensor) -> tuple[Tensor, ...]:
        ctx.group = group
        all_WTPh = gathered(torch.stack(pieces, dim=1), group).unflatten(0, (group.size, -1))
        return tuple(whole_WTh.transpose(0, 1).flatten(1) for whole_WTh in all_WTPh.unbind(2))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_rank = [grad.unflatten(1, (ctx.group.size, -1)).transpose(0, 1) for grad in grads]
        own_TPh = scattered_sum(torch.stack(by_rank, dim=2).flatten(0, 1), ctx.group)
        return (None, *own_TPh.unbind(1))
