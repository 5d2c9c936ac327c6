"""Contract of ``adamw``: Adam with decoupled weight decay (Loshchilov and Hutter, 2019, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evocore.ops.kernel import Request


class AdamW(Protocol):
    """One step for a list of tensors, all in place.

    For each parameter p with gradient g: ``p -= lr * weight_decay * p``, ``m = beta1 m + (1 - beta1) g``,
    ``v = beta2 v + (1 - beta2) g**2``, ``p -= lr * (m / c1) / (sqrt(v / c2) + eps)`` with
    ``c1 = 1 - beta1**step`` and ``c2 = 1 - beta2**step``.

    Args:
        params: the tensors to update, float32 (master weights) or float64, contiguous.
        grads: their gradients, same shapes and dtype; not modified.
        exp_avgs: m, same shapes and dtype; zero before the first step.
        exp_avg_sqs: v, likewise.
        step: 1 for the first step.
        lr, beta1, beta2, eps, weight_decay: numbers, the same for all tensors of the call.
    """

    def __call__(
        self,
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
    ) -> None: ...


@dataclass(frozen=True)
class AdamWRequest(Request):
    """``dtype`` is that of the parameters as the optimizer holds them."""

    @property
    def op(self) -> str:
        return "adamw"
