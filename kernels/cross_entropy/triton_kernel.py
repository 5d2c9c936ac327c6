"""``cross_entropy`` and ``cross_entropy_shard`` in Triton: logits are read forward, read and written backward.

That is the least traffic there is, 3 T V numbers: nothing of the logits' size is kept but the logits themselves. To
compute the gradient in forward already would save a reading, and cost a reading and a writing in backward, which
learns the incoming gradient only then.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.cross_entropy.rows import Terms
from evocore.kernels.cross_entropy.triton_backward import differentiate_rows, row_scales
from evocore.kernels.cross_entropy.triton_forward import evaluate_rows, shard_rows, weigh, with_whole_rows
from evocore.kernels.launch import Launch
from evocore.ops.cross_entropy import IGNORE_INDEX, CrossEntropy, CrossEntropyShard, ShardStatistics, TokenLoss


def cross_entropy(launch: Launch) -> CrossEntropy:
    def call(
        logits_TV: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        terms = Terms(ignore_index, label_smoothing, z_loss)
        return TokenLoss(*_CrossEntropy.apply(logits_TV, labels_T, weights_T, terms, launch))

    return call


def cross_entropy_shard(launch: Launch) -> CrossEntropyShard:
    def forward(logits_TV: Tensor, labels_T: Tensor) -> ShardStatistics:
        return shard_rows(launch, with_whole_rows(logits_TV), labels_T.contiguous())

    def backward(
        logits_TV: Tensor,
        labels_T: Tensor,
        lse_T: Tensor,
        scale_T: Tensor,
        *,
        vocab: int,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor:
        logits_TV = with_whole_rows(logits_TV)
        grad_TV = torch.empty_like(logits_TV, memory_format=torch.contiguous_format)
        rows = (labels_T.contiguous(), lse_T.contiguous(), scale_T.contiguous())
        differentiate_rows(launch, logits_TV, *rows, grad_TV, vocab, label_smoothing, z_loss)
        return grad_TV

    return CrossEntropyShard(forward, backward)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor | None, terms: Terms, launch: Launch
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_TV, labels_T = with_whole_rows(logits_TV), labels_T.contiguous()
        loss_T, lse_T = logits_TV.new_empty(2, len(logits_TV), dtype=torch.float32)
        correct_T = torch.empty_like(labels_T, dtype=torch.bool)
        evaluate_rows(launch, logits_TV, labels_T, terms, loss_T, correct_T, lse_T)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits_TV, labels_T, weights_T, lse_T)
        ctx.mark_non_differentiable(loss_T, correct_T)
        ctx.terms, ctx.launch = terms, launch
        return weigh(loss_T, weights_T), loss_T, correct_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * 5
        logits_TV, labels_T, weights_T, lse_T = ctx.saved_tensors
        terms: Terms = ctx.terms
        scale_T = row_scales(labels_T, weights_T, terms) * grad_total
        grad_TV = torch.empty_like(logits_TV, memory_format=torch.contiguous_format)
        vocab = logits_TV.shape[1]
        differentiate_rows(
            ctx.launch, logits_TV, labels_T, lse_T, scale_T, grad_TV, vocab, terms.label_smoothing, terms.z_loss
        )
        return grad_TV, None, None, None, None
