"""Loss and gradient of some rows of logits, in few passes over them.

Because the weights of the tokens are known with the call, the gradient of the weighted sum is complete as soon as the
softmax is: neither logits nor probabilities have to be kept or computed again.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Terms(NamedTuple):
    """The options of ``cross_entropy`` in one bundle."""

    ignore_index: int
    label_smoothing: float
    z_loss: float


def loss_rows(
    logits_CV: Tensor, labels_C: Tensor, weights_C: Tensor | None, terms: Terms, probs_CV: Tensor, wants_grad: bool
) -> tuple[Tensor, Tensor]:
    """Loss of each row, and whether its label has the largest logit.

    Args:
        logits_CV: any dtype; not modified.
        labels_C, weights_C: as in ``cross_entropy``.
        terms: the options.
        probs_CV: workspace in the dtype of the loss. With ``wants_grad`` it holds the gradient of the weighted loss
            with respect to the logits afterwards.
        wants_grad: whether that gradient is computed.
    """
    compute, vocab = probs_CV.dtype, logits_CV.shape[1]
    counted_C = labels_C != terms.ignore_index
    index_C1 = labels_C.where(counted_C, 0)[:, None]
    largest_C = logits_CV.amax(-1)
    label_C = logits_CV.gather(-1, index_C1)[:, 0]
    torch.softmax(logits_CV, -1, dtype=compute, out=probs_CV)
    # The largest probability is exp(0) / sum, so its logarithm is what is missing from the largest logit.
    lse_C = largest_C.to(compute) - probs_CV.amax(-1).log()
    loss_C = lse_C - label_C.to(compute)
    if terms.label_smoothing:
        mean_C = logits_CV.mean(-1, dtype=compute)
        loss_C = (1 - terms.label_smoothing) * loss_C + terms.label_smoothing * (lse_C - mean_C)
    if terms.z_loss:
        loss_C = loss_C + terms.z_loss * lse_C.square()
    if wants_grad:
        factor_C = counted_C.to(compute) if weights_C is None else counted_C * weights_C.to(compute)
        slope_C = factor_C * (1 + 2 * terms.z_loss * lse_C) if terms.z_loss else factor_C
        probs_CV.mul_(slope_C[:, None])
        if terms.label_smoothing:
            probs_CV.sub_(factor_C[:, None], alpha=terms.label_smoothing / vocab)
        probs_CV.scatter_add_(-1, index_C1, (factor_C * (terms.label_smoothing - 1))[:, None])
    return loss_C.where(counted_C, 0), counted_C & (label_C >= largest_C)


def weighted_sum(loss_T: Tensor, weights_T: Tensor | None) -> Tensor:
    """``total`` of the contract."""
    return loss_T.sum() if weights_T is None else loss_T.dot(weights_T.to(loss_T.dtype))
