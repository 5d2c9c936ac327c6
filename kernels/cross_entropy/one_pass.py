"""``cross_entropy`` whose forward computes the gradient: backward only scales it.

Instead of a copy of the logits in float32 and their log-softmax, only the gradient itself is kept, in the dtype of
the logits.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.cross_entropy.rows import Terms, loss_rows, weighted_sum
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss

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
        rows = max(1, WORKSPACE // vocab)
        loss_T = logits_TV.new_empty(tokens, dtype=compute)
        correct_T = logits_TV.new_empty(tokens, dtype=torch.bool)
        grad_TV = torch.empty_like(logits_TV, memory_format=torch.contiguous_format) if wants_grad else None
        in_place = grad_TV is not None and grad_TV.dtype == compute
        workspace = None if in_place else logits_TV.new_empty(min(rows, tokens), vocab, dtype=compute)
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
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
