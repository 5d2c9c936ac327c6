"""One training step on one rank, and one evaluation.

Every token of the global batch weighs the same: the loss is the mean over all targets of all micro-batches of all
ranks, so that it does not depend on how a batch is cut. The number of targets is therefore agreed on before backward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evocore.data.batch import MicroBatch
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss
from evocore.parallel.runtime import Runtime
from evocore.training.flops import NONE, Flops, FlopsCounter
from evocore.training.metrics import TokenMeter
from evocore.training.optimizer import Optimizer, StepResult


@dataclass(frozen=True)
class StepOutcome:
    """What a step did: the optimizer's result, sums over tokens of all ranks, this rank's operations."""

    result: StepResult
    meter: TokenMeter
    flops: Flops


class TrainStep:
    """Forward, backward and the optimizer step.

    Args:
        runtime: which tokens are this rank's, and what is summed over ranks.
        flops: of the whole model.
        loss_options: ``label_smoothing`` and ``z_loss``; evaluation uses neither.
        clip: global gradient norm to clip to; 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        runtime: Runtime,
        device: torch.device,
        *,
        flops: FlopsCounter,
        loss_options: dict[str, float],
        clip: float,
    ) -> None:
        self._model, self._optimizer, self._runtime, self._device = model, optimizer, runtime, device
        self._loss_options, self._clip, self._flops = loss_options, clip, flops

    def train(
        self, micro_batches: list[MicroBatch], targets: int, *, lr: float, beta2: float, loss_scale: float
    ) -> StepOutcome:
        """Make one optimizer step.

        Args:
            targets: tokens with a label in the micro-batches of all ranks.
        """
        self._model.train()
        self._optimizer.zero_grad()
        meter = TokenMeter(micro_batches[0].type_names, self._device)
        flops = NONE
        for number, batch in enumerate(micro_batches, 1):
            loss, labels_T, types_T = self._forward(batch, 1 / max(targets, 1), self._loss_options)
            if number == len(micro_batches):
                self._optimizer.expect_last()
            (loss.total * loss_scale).backward()
            self._runtime.finish_backward()
            meter.add(loss, labels_T, types_T)
            flops += self._flops.training(batch.lengths, share=1 / self._runtime.tensor_part.parts)
        result = self._optimizer.step(lr=lr, beta2=beta2, loss_scale=loss_scale, clip=self._clip)
        meter.sums = self._runtime.sum_of_tokens(meter.sums)
        return StepOutcome(result, meter, flops)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch]) -> float:
        """Mean loss over the targets of all ranks; each rank passes as many micro-batches as the others."""
        self._model.eval()
        sums = torch.zeros(2, dtype=torch.float32, device=self._device)
        for batch in batches:
            loss, labels_T, _ = self._forward(batch, 1.0, {})
            sums += torch.stack([loss.loss_T.sum(), (labels_T != IGNORE_INDEX).sum()])
        total, count = self._runtime.sum_of_tokens(sums).tolist()
        return float(total / max(count, 1))

    def _forward(
        self, batch: MicroBatch, weight: float, options: dict[str, Any]
    ) -> tuple[TokenLoss, Tensor, Tensor | None]:
        own = self._runtime.own_tokens
        labels_T = own(batch.labels_T).to(self._device)
        types_T = None if batch.types_T is None else own(batch.types_T).to(self._device)
        documents = CuSeqlens.of(batch.cu_seqlens, self._device)
        tokens_T, positions_T = own(batch.tokens_T).to(self._device), own(batch.positions_T).to(self._device)
        hidden_TD = self._model(tokens_T, positions_T, documents)
        weights_T = torch.full(labels_T.shape, weight, dtype=torch.float32, device=self._device)
        return self._model.loss(hidden_TD, labels_T, weights_T, **options), labels_T, types_T  # type: ignore[operator]
