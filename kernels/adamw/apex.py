"""``adamw`` by the multi-tensor kernel below apex's FusedAdam."""

from importlib import import_module

import torch
from torch import Tensor

CHUNK = 2048 * 32
"""Elements of a block's work, apex's own choice."""
ADAMW, BIAS_CORRECTION = 1, 1
"""Decoupled weight decay, and moments divided by ``1 - beta**step``."""

_extension = import_module("amp_C")  # which apex builds beside its package


@torch.no_grad()
def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    # What stands before an empty tensor at the end of a list would never be launched.
    filled = [index for index, param in enumerate(params) if param.numel()]
    if not filled:
        return
    lists = [[tensors[index] for index in filled] for tensors in (grads, params, exp_avgs, exp_avg_sqs)]
    skip = torch.zeros(1, dtype=torch.int32, device=params[filled[0]].device)
    _extension.multi_tensor_adam(
        CHUNK, skip, lists, lr, beta1, beta2, eps, step, ADAMW, BIAS_CORRECTION, weight_decay
    )
