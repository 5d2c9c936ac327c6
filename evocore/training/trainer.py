"""The loop: batches in, steps, evaluations and checkpoints out, and a clean stop whenever one is asked for."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch

from evocore.backend import Backend
from evocore.checkpoint.checkpointer import Checkpointer
from evocore.data.batch import StepBatch
from evocore.data.build import TrainLoader, ValidSet
from evocore.ops.cross_entropy import IGNORE_INDEX
from evocore.parallel.runtime import Runtime
from evocore.seeds import derive_seed
from evocore.training.control import StopFile, StopFlag
from evocore.training.metrics import Throughput, batch_figures, utilisation
from evocore.training.observer import Observer
from evocore.training.optimizer import Optimizer
from evocore.training.schedules import Beta2Schedule, CosineWithWarmup, LossScale
from evocore.training.shadow import Shadow
from evocore.training.state import Progress, run_state
from evocore.training.step import StepOutcome, TrainStep


class Ending(Enum):
    """How a run ended."""

    FINISHED = "finished"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Cadence:
    """How often things happen, in steps; 0 for never. ``total_steps`` counts skipped batches too, as in InternEvo."""

    total_steps: int
    checkpoint_every: int
    valid_every: int


@dataclass(frozen=True)
class _Agreement:
    """What all ranks know before a step: targets and tokens of the global batch, and what was asked from outside."""

    targets: int
    tokens: int
    stop: bool
    stop_file: int


class Trainer:
    """Runs a model that is ready from its current progress to the last step.

    Args:
        checkpointer: None saves nothing.
        shadow: watches the kernels on some steps; None watches nothing.
        seed: each step's random numbers depend on it, the step and the rank only, so that resuming needs no state.
        config: the resolved config, for the checkpoints.
    """

    def __init__(
        self,
        *,
        step: TrainStep,
        optimizer: Optimizer,
        loader: TrainLoader,
        valid_sets: Mapping[str, ValidSet],
        backend: Backend,
        device: torch.device,
        dtype: torch.dtype,
        runtime: Runtime,
        lr: CosineWithWarmup,
        beta2: Beta2Schedule,
        scale: LossScale,
        progress: Progress,
        cadence: Cadence,
        checkpointer: Checkpointer | None,
        stop_flag: StopFlag,
        stop_file: StopFile,
        observers: Sequence[Observer],
        shadow: Shadow | None,
        seed: int,
        config: dict[str, Any],
    ) -> None:
        self._step, self._optimizer, self._loader, self._valid_sets = step, optimizer, loader, valid_sets
        self._backend, self._device, self._dtype, self._runtime = backend, device, dtype, runtime
        self._lr, self._beta2, self._scale, self._progress, self._cadence = lr, beta2, scale, progress, cadence
        self._checkpointer, self._stop_flag, self._stop_file = checkpointer, stop_flag, stop_file
        self._observers, self._shadow, self._seed, self._config = observers, shadow, seed, config
        self._throughput = Throughput()
        self._saved_at = progress.steps if progress.steps else -1

    def run(self) -> Ending:
        """Train to ``total_steps`` or until all ranks agree to stop; save at the end either way."""
        if self._progress.steps == 0:
            self._validate()
        ending = self._loop()
        if ending is Ending.FINISHED and not self._is_due(self._cadence.valid_every):
            self._validate()
        self._save()
        self._optimizer.wait()  # what the last step has left under way: nobody drops half a message
        for observer in self._observers:
            observer.on_end(self._progress.steps, ending.value)
        return ending

    def _loop(self) -> Ending:
        while self._progress.batches < self._cadence.total_steps:
            batch = next(self._loader)
            agreed = self._agree(batch)
            self._progress.batches = batch.batch_count + 1
            if batch.skipped:
                self._tell(f"batch {batch.batch_count} skipped: named by data.skip_batches")
            else:
                self._train(batch, agreed)
            if not batch.skipped and self._is_due(self._cadence.valid_every):
                self._validate()
            wanted_here = agreed.stop_file != 0 and abs(agreed.stop_file) == self._progress.steps
            if wanted_here or (not batch.skipped and self._is_due(self._cadence.checkpoint_every)):
                self._save()
            if agreed.stop or (wanted_here and agreed.stop_file > 0):
                if self._progress.batches < self._cadence.total_steps:
                    return Ending.STOPPED
        return Ending.FINISHED

    def _is_due(self, every: int) -> bool:
        return every > 0 and self._progress.steps > 0 and self._progress.steps % every == 0

    def _agree(self, batch: StepBatch) -> _Agreement:
        """One small all-reduce tells every rank the size of the global batch and whether anyone wants to stop."""
        targets = sum(int((micro.labels_T != IGNORE_INDEX).sum()) for micro in batch.micro_batches)
        tokens = sum(micro.tokens_T.numel() for micro in batch.micro_batches)
        stop = int(self._stop_flag.reason is not None)
        stop_file = self._stop_file.read() if self._runtime.rank == 0 else 0
        if not self._runtime.counts_samples:
            targets = tokens = 0
        facts = torch.tensor([targets, tokens, stop, stop_file], dtype=torch.int64, device=self._device)
        targets, tokens, stop, stop_file = self._runtime.sum(facts).tolist()
        return _Agreement(targets, tokens, stop > 0, stop_file)

    def _train(self, batch: StepBatch, agreed: _Agreement) -> None:
        progress, scale = self._progress, self._scale.scale
        lr, beta2 = self._lr(progress.steps), self._beta2(progress.steps)
        self._backend.manual_seed(derive_seed(self._seed, progress.steps, self._runtime.rank) >> 1)
        if self._shadow is not None:
            self._shadow.start_step(progress.steps + 1, batch.micro_batches)
        start = time.perf_counter()
        seed = derive_seed(self._seed, progress.steps)
        outcome = self._step.train(
            batch.micro_batches, agreed.targets, lr=lr, beta2=beta2, loss_scale=scale, seed=seed
        )
        self._backend.synchronize(self._device)
        seconds = time.perf_counter() - start
        progress.steps += 1
        progress.tokens += agreed.tokens
        self._scale.update(overflow=not outcome.result.applied)
        if not outcome.result.applied:
            progress.skipped_steps += 1
            culprit = outcome.result.bad_parameter or "no single parameter: the sum of squares overflowed"
            self._tell(f"step {progress.steps} not applied: gradient not finite, first in {culprit}")
        self._report(batch, agreed, outcome, seconds, lr=lr, beta2=beta2, scale=scale)

    def _report(
        self,
        batch: StepBatch,
        agreed: _Agreement,
        outcome: StepOutcome,
        seconds: float,
        *,
        lr: float,
        beta2: float,
        scale: float,
    ) -> None:
        figures = outcome.meter.figures()
        metrics = {
            "step": self._progress.steps,
            "loss": figures["loss_from_metric"],
            "lr": lr,
            "grad_norm": outcome.result.grad_norm,
            "loss_scale": scale,
            **utilisation(outcome.flops, seconds, self._backend.peak_flops(self._dtype, self._device)),
            **self._throughput.add(agreed.tokens / self._runtime.world, seconds),
            "micro_num": len(batch.micro_batches),
            "num_consumed_tokens": self._progress.tokens,
            "inf_nan_skip_batches": self._progress.skipped_steps,
            **batch_figures(batch.micro_batches),
            "adam_beta2": beta2,
            "fwd_bwd_time": seconds,
            "memory_peak": self._backend.memory(self._device)["peak"],
            **figures,
            **outcome.routing,
            **({} if outcome.further_loss is None else {"mtp_loss": outcome.further_loss}),
        }
        for observer in self._observers:
            observer.on_step(metrics)
        if self._shadow is not None:
            for line in self._shadow.end_step(metrics["loss"], metrics["grad_norm"]):
                self._tell(line)

    def _validate(self) -> None:
        if self._cadence.valid_every <= 0 or not self._valid_sets:
            return
        losses = {name: self._step.evaluate(batches) for name, batches in self._valid_sets.items()}
        for observer in self._observers:
            observer.on_validation(self._progress.steps, losses)

    def _save(self) -> None:
        if self._checkpointer is None or self._saved_at == self._progress.steps:
            return
        state = run_state(self._progress, self._optimizer, self._scale, self._loader.state_dict(), self._seed)
        path = self._checkpointer.save(
            self._progress.steps, tensors=self._optimizer.tensors(), state=state, config=self._config
        )
        self._saved_at = self._progress.steps
        self._tell(f"checkpoint saved: {path}")

    def _tell(self, text: str) -> None:
        for observer in self._observers:
            observer.on_message(text)
