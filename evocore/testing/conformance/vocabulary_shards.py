"""The two halves of ``cross_entropy_shard`` as one differentiable function: all ranks' work in turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evocore.ops.cross_entropy import IGNORE_INDEX, CrossEntropyShard, ShardStatistics
from evocore.testing.conformance.calls import ContractError


def differentiable(kernel: CrossEntropyShard) -> Callable[..., tuple[Tensor, ...]]:
    """``CrossEntropy`` with one more option, the number of equal shards, and with the statistics as more outputs."""

    def cross_entropy_shard(
        logits_TV: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None,
        *,
        shards: int,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Any:
        options = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        return _Loss.apply(kernel, shards, options, logits_TV, labels_T, weights_T, labels_T != ignore_index)

    return cross_entropy_shard


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kernel: CrossEntropyShard,
        shards: int,
        options: dict[str, float],
        logits_TV: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None,
        counted_T: Tensor,
    ) -> tuple[Tensor, ...]:
        parts = _parts(logits_TV, labels_T, counted_T, shards)
        lse_PT, label_PT, sum_PT, largest_PT = map(
            torch.stack, zip(*(_checked(kernel.forward(*part), part[0]) for part in parts), strict=True)
        )
        lse_T, label_T, sum_T, largest_T = lse_PT.logsumexp(0), label_PT.sum(0), sum_PT.sum(0), largest_PT.amax(0)
        smoothing, vocab = options["label_smoothing"], logits_TV.shape[1]
        loss_T = (1 - smoothing) * (lse_T - label_T) + smoothing * (lse_T - sum_T / vocab)
        loss_T = (loss_T + options["z_loss"] * lse_T.square()).where(counted_T, 0)
        scale_T = (counted_T if weights_T is None else weights_T.where(counted_T, 0)).to(lse_T.dtype)
        ctx.save_for_backward(logits_TV, labels_T, counted_T, lse_T, scale_T)
        ctx.kernel, ctx.shards, ctx.options = kernel, shards, options
        others = loss_T, counted_T & (label_T >= largest_T), lse_T, label_T, sum_T, largest_T
        ctx.mark_non_differentiable(*others)
        return (loss_T * scale_T).sum(), *others

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        logits_TV, labels_T, counted_T, lse_T, scale_T = ctx.saved_tensors
        options = ctx.options | {"vocab": logits_TV.shape[1]}
        gradients = []
        for part in _parts(logits_TV, labels_T, counted_T, ctx.shards):
            gradient = ctx.kernel.backward(*part, lse_T, scale_T * grad, **options)
            if (gradient.shape, gradient.dtype) != (part[0].shape, part[0].dtype) or not gradient.is_contiguous():
                raise ContractError(
                    f"backward gives {gradient.dtype} {list(gradient.shape)} of strides {gradient.stride()}, "
                    f"expected contiguous {part[0].dtype} {list(part[0].shape)}"
                )
            gradients.append(gradient)
        return None, None, None, torch.cat(gradients, 1), None, None, None


def _parts(logits_TV: Tensor, labels_T: Tensor, counted_T: Tensor, shards: int) -> list[tuple[Tensor, Tensor]]:
    """Each shard's logits, and the labels as it counts them."""
    size = logits_TV.shape[1] // shards
    return [
        (logits_TV[:, start : start + size], (labels_T - start).where(counted_T, -1))
        for start in range(0, logits_TV.shape[1], size)
    ]


def _checked(statistics: ShardStatistics, logits_TV: Tensor) -> ShardStatistics:
    dtype = torch.promote_types(logits_TV.dtype, torch.float32)
    for name, x in statistics._asdict().items():
        if (x.shape, x.dtype) != (logits_TV.shape[:1], dtype):
            raise ContractError(f"{name} is {x.dtype} {list(x.shape)}, expected {dtype} {list(logits_TV.shape[:1])}")
    return statistics
