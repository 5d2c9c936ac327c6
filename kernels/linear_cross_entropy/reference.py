"""The meaning of ``linear_cross_entropy``, written to be read; every other provider is compared with it.

It does build the whole ``[T, V]`` logits, in the dtype of the hidden states, as a model without this op would.
"""

import torch
from torch import Tensor

from evocore.kernels.cross_entropy.reference import cross_entropy
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss


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
    logits_TV = hidden_TD @ weight_VD.mT
    if softcap is not None:
        wide_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32))
        logits_TV = softcap * (wide_TV / softcap).tanh()
    return cross_entropy(
        logits_TV,
        labels_T,
        weights_T,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
    )
