"""One training step on one rank, and one evaluation.

Every token of the global batch weighs the same: the loss is the mean over all targets of all micro-batches of all
ranks, so that it does not depend on how a batch is cut. The number of targets is therefore agreed on before backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from evocore.data.batch import MicroBatch
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import IGNORE_INDEX, TokenLoss
from evocore.parallel.runtime import Runtime
from evocore.training.flops import NONE, Flops, FlopsCounter
from evocore.training.further import Further
from evocore.training.metrics import TokenMeter
from evocore.training.optimizer import Optimizer, StepResult
from evocore.training.routers import Routers

EVALUATED_TOGETHER = 4
"""Micro-batches of an evaluation, for each pipeline stage, that go through the pipeline without a pause."""


@dataclass(frozen=True)
class StepOutcome:
    """What a step did: the optimizer's result, sums over tokens of all ranks, this rank's operations.

    ``routing`` are figures of all routers, see ``Routers.finish``; none of a dense model. ``further_loss`` is that of
    predictions beyond the next token; None if there are none.
    """

    result: StepResult
    meter: TokenMeter
    flops: Flops
    routing: dict[str, Any] = field(default_factory=dict)
    further_loss: float | None = None


class TrainStep:
    """Forward, backward and the optimizer step.

    Args:
        runtime: which tokens are this rank's, and what is summed over ranks.
        flops: of the layers of this rank's pipeline stage.
        loss_options: ``label_smoothing`` and ``z_loss``; evaluation uses neither.
        clip: global gradient norm to clip to; 0 for none.
        routers: of a mixture of experts.
        further: of a model that predicts tokens beyond the next one.
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
        routers: Routers | None = None,
        further: Further | None = None,
    ) -> None:
        self._model, self._optimizer, self._runtime, self._device = model, optimizer, runtime, device
        self._loss_options, self._clip, self._flops = loss_options, clip, flops
        self._routers, self._further = routers, further

    def train(
        self,
        micro_batches: list[MicroBatch],
        targets: int,
        *,
        lr: float,
        beta2: float,
        loss_scale: float,
        seed: int = 0,
    ) -> StepOutcome:
        """Make one optimizer step.

        Args:
            targets: tokens with a label in the micro-batches of all ranks.
            seed: of random numbers that do not depend on the rank.
        """
        self._model.train()
        self._optimizer.zero_grad()
        meter = TokenMeter(micro_batches[0].type_names, self._device)
        flops = NONE
        if self._routers is not None:
            self._routers.begin(len(micro_batches), loss_scale, seed)
        for batch in micro_batches:
            flops += self._flops.training(batch.lengths, share=1 / self._runtime.tensor_part.parts)
        chunks = _Chunks(
            self._model,
            self._runtime,
            self._device,
            micro_batches,
            meter.add,
            weight=1 / max(targets, 1),
            options=self._loss_options,
            scale=loss_scale,
            further=self._further,
            routers=self._routers,
        )
        self._runtime.pipeline.train(
            chunks, len(micro_batches), self._device, last_gradients=self._optimizer.last_gradients
        )
        result = self._optimizer.step(lr=lr, beta2=beta2, loss_scale=loss_scale, clip=self._clip)
        meter.sums, further_loss = self._sums(meter.sums)
        routing = {}
        if self._routers is not None:
            routing = self._routers.finish(len(micro_batches), self._device, applied=result.applied)
        return StepOutcome(result, meter, flops, routing, further_loss)

    def _sums(self, sums: Tensor) -> tuple[Tensor, float | None]:
        """Of all ranks: what the meter has counted, and the loss of further predictions."""
        if self._further is None:
            return self._runtime.sum_of_tokens(sums), None
        both = self._runtime.sum_of_tokens(torch.cat([sums.flatten(), self._further.take(self._device)]))
        return both[:-1].view(sums.shape), float(both[-1])

    @torch.no_grad()
    def evaluate(self, batches: Iterable[MicroBatch]) -> float:
        """Mean loss over the targets of all ranks; each rank passes as many micro-batches as the others."""
        self._model.eval()
        sums = torch.zeros(2, dtype=torch.float32, device=self._device)

        def add(loss: TokenLoss, labels_T: Tensor, types_T: Tensor | None) -> None:
            sums.add_(torch.stack([loss.loss_T.sum(), (labels_T != IGNORE_INDEX).sum()]))

        pipeline, rest = self._runtime.pipeline, iter(batches)
        while some := list(islice(rest, EVALUATED_TOGETHER * pipeline.schedule.stages)):
            chunks = _Chunks(self._model, self._runtime, self._device, some, add, weight=1.0)
            pipeline.evaluate(chunks, len(some), self._device)
        total, count = self._runtime.sum_of_tokens(sums).tolist()
        return float(total / max(count, 1))


class _Chunks:
    """A pipeline stage's chunks of the model at work on some micro-batches, for ``evocore.parallel.pipeline.engine``.

    Args:
        told: called with the loss of each micro-batch, its labels and types, where the last chunk is.
        weight: of each target in the loss that is differentiated.
        options: of the loss.
        scale: of what is differentiated.
        further: adds the loss of predictions beyond the next token.
        routers: are told which micro-batch is under way, where experts are chosen by chance.
    """

    def __init__(
        self,
        model: nn.Module,
        runtime: Runtime,
        device: torch.device,
        batches: Sequence[MicroBatch],
        told: Callable[[TokenLoss, Tensor, Tensor | None], None],
        *,
        weight: float,
        options: Mapping[str, float] = MappingProxyType({}),
        scale: float = 1.0,
        further: Further | None = None,
        routers: Routers | None = None,
    ) -> None:
        self._further, self._routers = further, routers
        self._model, self._runtime, self._device, self._batches = model, runtime, device, batches
        self._told, self._weight, self._options, self._scale = told, weight, options, scale

    def forward(self, chunk: int, micro: int, carried: tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
        self._begin(micro)
        batch, chunks = self._batches[micro], self._runtime.layout.chunks
        tokens_T, positions_T = self._own(batch.tokens_T), self._own(batch.positions_T)
        documents = CuSeqlens.of(batch.cu_seqlens, self._device)
        part: dict[str, Any] = dict(layers=chunks[chunk], carried=carried) if chunks else {}
        found = self._model(tokens_T, positions_T, documents, **part)
        if chunk < len(chunks) - 1:
            return found  # type: ignore[no-any-return]
        labels_T = self._own(batch.labels_T)
        types_T = None if batch.types_T is None else self._own(batch.types_T)
        weights_T = torch.full(labels_T.shape, self._weight, dtype=torch.float32, device=self._device)
        loss: TokenLoss = self._model.loss(found, labels_T, weights_T, **self._options)  # type: ignore[operator]
        self._told(loss, labels_T, types_T)
        total = loss.total
        if self._further is not None:
            total = total + self._further.loss(
                self._model, batch, self._own, found, positions_T, documents, weights_T, **self._options
            )
        return (total * self._scale,)

    def begin_backward(self, micro: int) -> None:
        self._begin(micro)

    def _begin(self, micro: int) -> None:
        if self._routers is not None:
            self._routers.at(micro)

    def carried(self, micro: int) -> tuple[Tensor, ...]:
        own = sum(stop - start for start, stop in self._runtime.layout.own_tokens(len(self._batches[micro].tokens_T)))
        return self._model.carried(self._runtime.tokens_between_layers(own))  # type: ignore[operator, no-any-return]

    def _own(self, x_T: Tensor) -> Tensor:
        return self._runtime.own_tokens(x_T).to(self._device)
