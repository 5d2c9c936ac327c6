"""Where the figures of a run are written: ``metrics.jsonl`` always, TensorBoard if it is installed and wanted."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from evocore.training.observer import Observer, RunStart


class JSONLines(Observer):
    """One line per step in ``metrics.jsonl`` of the run's folder.

    A resumed run goes on in the same file, behind the last step that it keeps: lines of steps that will be made again
    are dropped first.
    """

    _file: TextIO

    def on_start(self, start: RunStart) -> None:
        path = start.folder / "metrics.jsonl"
        kept = [line for line in _complete_lines(path) if json.loads(line)["step"] < start.first_step]
        beside = path.with_suffix(".jsonl.new")
        beside.write_text("".join(line + "\n" for line in kept))
        os.replace(beside, path)  # killed at any time, one of the two is whole
        self._file = path.open("a", buffering=1)

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        self._write(metrics)

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        self._write({"step": step, **{f"valid/{name}": loss for name, loss in losses.items()}})

    def on_end(self, step: int, state: str) -> None:
        self._file.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({name: _plain(value) for name, value in record.items()}) + "\n")


class TensorBoard(Observer):
    """Scalars for TensorBoard."""

    _writer: Any = None

    def on_start(self, start: RunStart) -> None:
        if start.tensorboard is None:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(start.tensorboard), purge_step=start.first_step)

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        self._add(metrics["step"], metrics)

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        self._add(step, {f"valid/{name}": loss for name, loss in losses.items()})

    def on_end(self, step: int, state: str) -> None:
        if self._writer is not None:
            self._writer.close()

    def _add(self, step: int, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            return
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, step)


def _complete_lines(path: Path) -> list[str]:
    """Lines that end as they should; a killed run can leave half a line."""
    if not path.is_file():
        return []
    return [line[:-1] for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they are written as words."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
