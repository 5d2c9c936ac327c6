"""The meaning of ``cross_entropy`` and ``cross_entropy_shard``, written to be read.

Every other provider is compared with it.
"""

import torch
from torch import Tensor

from evocore.ops.cross_entropy import IGNORE_INDEX, CrossEntropyShard, ShardStatistics, TokenLoss


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


def _shard_forward(logits_TV: Tensor, labels_T: Tensor) -> ShardStatistics:
    x_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    label_T = x_TV.where(_is_label(x_TV, labels_T), 0).sum(-1)
    return ShardStatistics(x_TV.logsumexp(-1), label_T, x_TV.sum(-1), x_TV.amax(-1))


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
    x_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
    lse_T1, scale_T1 = lse_T.to(x_TV.dtype)[:, None], scale_T.to(x_TV.dtype)[:, None]
    slope_TV = (1 + 2 * z_loss * lse_T1) * (x_TV - lse_T1).exp()
    target_TV = (1 - label_smoothing) * _is_label(x_TV, labels_T).to(x_TV.dtype) + label_smoothing / vocab
    return (scale_T1 * (slope_TV - target_TV)).to(logits_TV.dtype).contiguous()


def _is_label(x_TV: Tensor, labels_T: Tensor) -> Tensor:
    return torch.arange(x_TV.shape[1], device=x_TV.device) == labels_T[:, None]


cross_entropy_shard = CrossEntropyShard(_shard_forward, _shard_backward)
