"""``cross_entropy`` whose forward computes the gradient: backward only scales it; and ``cross_entropy_shard``.

Instead of a copy of the logits in float32 and their log-softmax, only the gradient itself is kept, in the dtype of
the logits. A shard cannot know its gradient before the others are heard, so its backward reads the logits once more.
Either way what is in float32 is a workspace of some rows.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.cross_entropy.rows import Terms, loss_rows, weighted_sum
from evocore.ops.cross_entropy import IGNORE_INDEX, CrossEntropyShard, ShardStatistics, TokenLoss

WORKSPACE = 2**20
"""Elements of the workspace: a few megabytes stay in the last cache of a CPU."""


def cross_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    weights_T: Tensor | None = None,
    *,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> TokenLoss:
    wants_grad = torch.is_grad_enabled() and logits_TV.requires_grad
    terms = Terms(ignore_index, label_smoothing, z_loss)
    return TokenLoss(*_CrossEntropy.apply(logits_TV, labels_T, weights_T, terms, wants_grad))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor | None, terms: Terms, wants_grad: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, vocab = logits_TV.shape
        compute = torch.promote_types(logits_TV.dtype, torch.float32)
        loss_T = logits_TV.new_empty(tokens, dtype=compute)
        correct_T = logits_TV.new_empty(tokens, dtype=torch.bool)
        grad_TV = torch.empty_like(logits_TV, memory_format=torch.contiguous_format) if wants_grad else None
        in_place = grad_TV is not None and grad_TV.dtype == compute
        workspace = None if in_place else logits_TV.new_empty(_rows(logits_TV), vocab, dtype=compute)
        for part in _parts(logits_TV):
            logits_CV = logits_TV[part]
            target_TV = grad_TV[part] if workspace is None and grad_TV is not None else workspace
            assert target_TV is not None
            probs_CV = target_TV[: len(logits_CV)]
            weights_C = None if weights_T is None else weights_T[part]
            loss_T[part], correct_T[part] = loss_rows(
                logits_CV, labels_T[part], weights_C, terms, probs_CV, wants_grad
            )
            if grad_TV is not None and workspace is not None:
                grad_TV[part] = probs_CV
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_TV)
        ctx.mark_non_differentiable(loss_T, correct_T)
        return weighted_sum(loss_T, weights_T), loss_T, correct_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * 5
        (grad_TV,) = ctx.saved_tensors
        return (grad_TV * grad_total.to(grad_TV.dtype), None, None, None, None)


def _shard_forward(logits_TV: Tensor, labels_T: Tensor) -> ShardStatistics:
    tokens, vocab = logits_TV.shape
    compute = torch.promote_types(logits_TV.dtype, torch.float32)
    lse_T, sum_T, largest_T = logits_TV.new_empty(3, tokens, dtype=compute)
    here_T, index_T1 = _find_labels(labels_T, vocab)
    label_T = logits_TV.gather(-1, index_T1)[:, 0].to(compute).where(here_T, 0)
    workspace = logits_TV.new_empty(_rows(logits_TV), vocab, dtype=compute)
    for part in _parts(logits_TV):
        logits_CV = logits_TV[part]
        exps_CV = workspace[: len(logits_CV)]
        torch.sum(logits_CV, -1, dtype=compute, out=sum_T[part])
        largest_T[part] = logits_CV.amax(-1)
        # A shard of nothing but -inf (padding of the vocabulary) has the logarithm of 0, not of -inf - -inf.
        shift_C = largest_T[part].where(largest_T[part].isfinite(), 0)
        torch.sub(logits_CV, shift_C[:, None], out=exps_CV)
        lse_T[part] = shift_C + exps_CV.exp_().sum(-1).log_()
    return ShardStatistics(lse_T, label_T, sum_T, largest_T)


def _shard_backward(
    logits_TV: Tensor,
    labels_T: Tensor,
    lse_T: Tensor,
    scale_T: Tensor,
    *,
    vocab: int,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    compute = torch.promote_types(logits_TV.dtype, torch.float32)
    lse_T, scale_T = lse_T.to(compute), scale_T.to(compute)
    slope_T = scale_T * (1 + 2 * z_loss * lse_T)
    here_T, index_T1 = _find_labels(labels_T, logits_TV.shape[1])
    target_T = (scale_T * (label_smoothing - 1)).where(here_T, 0)
    grad_TV = torch.empty_like(logits_TV, memory_format=torch.contiguous_format)
    in_place = grad_TV.dtype == compute
    workspace = grad_TV if in_place else logits_TV.new_empty(_rows(logits_TV), logits_TV.shape[1], dtype=compute)
    for part in _parts(logits_TV):
        logits_CV = logits_TV[part]
        probs_CV = grad_TV[part] if in_place else workspace[: len(logits_CV)]
        torch.sub(logits_CV, lse_T[part, None], out=probs_CV)
        probs_CV.exp_().mul_(slope_T[part, None])
        if label_smoothing:
            probs_CV.sub_(scale_T[part, None], alpha=label_smoothing / vocab)
        probs_CV.scatter_add_(-1, index_T1[part], target_T[part, None])
        if not in_place:
            grad_TV[part] = probs_CV
    return grad_TV


def _find_labels(labels_T: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """Which labels lie in this shard, and an index ``[T, 1]`` that is safe to gather with: 0 for the others."""
    here_T = (labels_T >= 0) & (labels_T < vocab)
    return here_T, labels_T.where(here_T, 0)[:, None]


def _rows(logits_TV: Tensor) -> int:
    """Of the workspace."""
    tokens, vocab = logits_TV.shape
    return min(tokens, max(1, WORKSPACE // vocab))


def _parts(logits_TV: Tensor) -> Iterator[slice]:
    rows = max(1, _rows(logits_TV))
    return (slice(start, start + rows) for start in range(0, len(logits_TV), rows))


cross_entropy_shard = CrossEntropyShard(_shard_forward, _shard_backward)
