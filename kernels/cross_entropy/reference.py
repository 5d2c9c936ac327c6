"""The meaning of ``cross_entropy``, written to be read; every other provider is compared with it."""

import torch
from torch import Tensor

from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss


def cross_entropy(
    logits_TV: Tensor,
    labels_T: Tensor,
    weights_T: Tensor | None = None,
    *,
    ignore_index: int = IGNORE_INDEX,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> TokenLoss:
    x_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    counted_T = labels_T != ignore_index
    target_T = x_TV.gather(-1, labels_T.where(counted_T, 0)[:, None])[:, 0]
    lse_T = x_TV.logsumexp(-1)
    loss_T = (1 - label_smoothing) * (lse_T - target_T) + label_smoothing * (lse_T - x_TV.mean(-1))
    loss_T = (loss_T + z_loss * lse_T.square()).where(counted_T, 0)
    total = (loss_T if weights_T is None else loss_T * weights_T).sum()
    return TokenLoss(total, loss_T.detach(), counted_T & (target_T.detach() >= x_TV.detach().amax(-1)))
