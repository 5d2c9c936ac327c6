"""``linear_cross_entropy`` in chunks of rows: three matrix products, and never more logits than one chunk's.

The gradients of hidden states and weight are computed in forward while a chunk's probabilities are at hand (as in
Liger, Hsu et al., 2024), so that nothing of the vocabulary's size times the tokens is kept or computed twice.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.cross_entropy.rows import Terms, loss_rows, weighted_sum
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss
from evocore.ops.softcap import capped, slope

CHUNK = 2**21
"""Elements of a chunk's logits: enough rows for an efficient product, few enough to stay in the last cache."""
MIN_ROWS = 64


def linear_cross_entropy(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    weights_T: Tensor | None = None,
    *,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
) -> TokenLoss:
    grads = torch.is_grad_enabled()
    wants = (grads and hidden_TD.requires_grad, grads and weight_VD.requires_grad)
    terms = Terms(ignore_index, label_smoothing, z_loss)
    return TokenLoss(*_LinearCrossEntropy.apply(hidden_TD, weight_VD, labels_T, weights_T, terms, softcap, wants))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None,
        terms: Terms,
        softcap: float | None,
        wants: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, vocab, dtype = len(hidden_TD), len(weight_VD), hidden_TD.dtype
        compute = torch.promote_types(dtype, torch.float32)
        rows = min(tokens, max(MIN_ROWS, CHUNK // vocab))
        logits = hidden_TD.new_empty(rows, vocab)
        probs = hidden_TD.new_empty(rows, vocab, dtype=compute)
        loss_T = hidden_TD.new_empty(tokens, dtype=compute)
        correct_T = hidden_TD.new_empty(tokens, dtype=torch.bool)
        grad_hidden_TD = torch.empty(hidden_TD.shape, dtype=dtype, device=hidden_TD.device) if wants[0] else None
        # Sums over chunks are kept in the precision of the loss.
        grad_weight_VD = torch.zeros(weight_VD.shape, dtype=compute, device=weight_VD.device) if wants[1] else None
        for start in range(0, tokens, rows or 1):
            part = slice(start, start + rows)
            hidden_CD = hidden_TD[part]
            logits_CV, probs_CV = logits[: len(hidden_CD)], probs[: len(hidden_CD)]
            torch.mm(hidden_CD, weight_VD.T, out=logits_CV)
            weights_C = None if weights_T is None else weights_T[part]
            capped_CV = logits_CV if softcap is None else capped(logits_CV, softcap)
            loss_T[part], correct_T[part] = loss_rows(
                capped_CV, labels_T[part], weights_C, terms, probs_CV, any(wants)
            )
            if softcap is not None and any(wants):
                probs_CV.mul_(slope(capped_CV, softcap))
            grad_CV = probs_CV if dtype == compute else logits_CV.copy_(probs_CV)
            if grad_hidden_TD is not None:
                torch.mm(grad_CV, weight_VD, out=grad_hidden_TD[part])
            if grad_weight_VD is not None and dtype == compute:
                grad_weight_VD.addmm_(grad_CV.T, hidden_CD)
            elif grad_weight_VD is not None:
                grad_weight_VD.add_(grad_CV.T @ hidden_CD)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_hidden_TD, None if grad_weight_VD is None else grad_weight_VD.to(dtype))
        ctx.mark_non_differentiable(loss_T, correct_T)
        return weighted_sum(loss_T, weights_T), loss_T, correct_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * 7
        grads = (None if grad is None else grad * grad_total.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*grads, None, None, None, None, None)
