"""One training step on one data-parallel rank, and one evaluation.

Every token of the global batch weighs the same: the loss is the mean over all targets of all micro-batches of all
ranks, so that it does not depend on how a batch is cut. The number of targets is therefore agreed on before backward.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from evocore.data.batch import MicroBatch
from evocore.ops.attention import CuSeqlens
from evocore.ops.collectives import Collectives
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss
from evocore.training.flops import NONE, Flops, FlopsCounter
from evocore.training.metrics import TokenMeter
from evocore.training.optimizer import Optimizer, StepResult


@dataclass(frozen=True)
class DataParallel:
    """The ranks that share one set of weights. ``size`` 1 needs no process group."""

    rank: int
    size: int
    collectives: Collectives
    group: dist.ProcessGroup | None = None

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum in place over the ranks."""
        if self.size > 1:
            self.collectives.all_reduce(tensor, self.group)
        return tensor


@dataclass(frozen=True)
class StepOutcome:
    """What a step did: the optimizer's result, sums over tokens of all ranks, this rank's operations."""

    result: StepResult
    meter: TokenMeter
    flops: Flops


class TrainStep:
    """Forward, backward, reduction over data ranks and the optimizer step.

    Args:
        loss_options: ``label_smoothing`` and ``z_loss``; evaluation uses neither.
        clip: global gradient norm to clip to; 0 for none.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data_parallel: DataParallel,
        device: torch.device,
        *,
        loss_options: dict[str, float],
        clip: float,
    ) -> None:
        self._model, self._optimizer, self._ranks, self._device = model, optimizer, data_parallel, device
        self._loss_options, self._clip = loss_options, clip
        self._flops = FlopsCounter(model)  # type: ignore[arg-type]

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
        for batch in micro_batches:
            loss, labels_T, types_T = self._forward(batch, 1 / max(targets, 1), self._loss_options)
            (loss.total * loss_scale).backward()
            meter.add(loss, labels_T, types_T)
            flops += self._flops.training(batch.lengths)
        for gradient in self._optimizer.gradients():
            self._ranks.sum(gradient)
        result = self._optimizer.step(lr=lr, beta2=beta2, loss_scale=loss_scale, clip=self._clip)
        self._ranks.sum(meter.sums)
        return StepOutcome(result, meter, flops)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch]) -> float:
        """Mean loss over the targets of all ranks; each rank passes as many micro-batches as the others."""
        self._model.eval()
        sums = torch.zeros(2, dtype=torch.float32, device=self._device)
        for batch in batches:
            loss, labels_T, _ = self._forward(batch, 1.0, {})
            sums += torch.stack([loss.loss_T.sum(), (labels_T != IGNORE_INDEX).sum()])
        total, count = self._ranks.sum(sums).tolist()
        return float(total / max(count, 1))

    def _forward(
        self, batch: MicroBatch, weight: float, options: dict[str, Any]
    ) -> tuple[TokenLoss, Tensor, Tensor | None]:
        labels_T = batch.labels_T.to(self._device)
        types_T = None if batch.types_T is None else batch.types_T.to(self._device)
        documents = CuSeqlens.of(batch.cu_seqlens, self._device)
        hidden_TD = self._model(batch.tokens_T.to(self._device), batch.positions_T.to(self._device), documents)
        weights_T = torch.full(labels_T.shape, weight, dtype=torch.float32, device=self._device)
        return self._model.loss(hidden_TD, labels_T, weights_T, **options), labels_T, types_T  # type: ignore[operator]
