"""What the trainer tells whoever watches: trackers, progress displays, alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class RunStart:
    """What is known before the first step.

    Attributes:
        folder: of the run.
        first_step: number of the first step that will be made; above 1 if the run is resumed.
        total_steps: number of the last step.
        report: the launch report, one fact per line.
        tensorboard: where a TensorBoard writer should write; None if none is wanted.
    """

    folder: Path
    first_step: int
    total_steps: int
    report: list[str]
    tensorboard: Path | None = None


class Observer:
    """Receives events on rank 0; the defaults ignore them."""

    def on_start(self, start: RunStart) -> None:
        """Before the first step."""

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        """After a step, with the fields of ``StepMeter``."""

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        """After an evaluation: mean loss of each validation set."""

    def on_message(self, text: str) -> None:
        """Something worth a line: a checkpoint, a skipped step, a request to stop."""

    def on_end(self, step: int, state: str) -> None:
        """At the end; ``state`` is finished or stopped."""
