"""What a person sees while a run goes on: a live line in a terminal, plain lines in a file.

Everything goes to standard error, and to ``log.txt`` in the run's folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from evocore.training.observer import Observer, RunStart


class Log(Observer):
    """InternEvo's ``key=value`` lines, one per step, in ``log.txt``; without a terminal also on standard error.

    What a step has for each layer is too much for a line: ``metrics.jsonl`` has it.
    """

    def __init__(self, echo: bool) -> None:
        self._echo = echo
        self._file: TextIO | None = None

    def on_start(self, start: RunStart) -> None:
        self._file = (start.folder / "log.txt").open("a", buffering=1)
        for line in start.report:
            self._line(line)
        self._line(f"run folder {start.folder}")

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        shown = {name: value for name, value in metrics.items() if not name.startswith("moe/")}
        self._line(" ".join(f"{name}={_short(value)}" for name, value in shown.items()))

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        self._line(f"step={step} " + " ".join(f"valid/{name}={_short(loss)}" for name, loss in losses.items()))

    def on_message(self, text: str) -> None:
        self._line(text)

    def on_end(self, step: int, state: str) -> None:
        self._line(f"{state} after step {step}")
        if self._file is not None:
            self._file.close()

    def _line(self, text: str) -> None:
        assert self._file is not None
        self._file.write(text + "\n")
        if self._echo:
            print(text, file=sys.stderr, flush=True)


class Bar(Observer):
    """A progress bar with the figures that people watch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._task: TaskID | None = None

    def on_start(self, start: RunStart) -> None:
        for line in start.report:
            self._console.print(line, style="dim", highlight=False, markup=False)
        self._console.print(f"run folder {start.folder}", highlight=False, markup=False)
        self._task = self._bar.add_task("train", total=start.total_steps, completed=start.first_step - 1, figures="")
        self._bar.start()

    def on_step(self, metrics: Mapping[str, Any]) -> None:
        assert self._task is not None
        mfu = "" if metrics["mfu"] is None else f"  mfu {metrics['mfu']:.1%}"
        figures = f"loss {metrics['loss']:.4f}  {metrics['tgs/tgs_SMA']:,.0f} tokens/s{mfu}  lr {metrics['lr']:.2e}"
        self._bar.update(self._task, completed=metrics["step"], figures=figures)

    def on_validation(self, step: int, losses: Mapping[str, float]) -> None:
        self.on_message(f"step {step}: " + ", ".join(f"{name} loss {loss:.4f}" for name, loss in losses.items()))

    def on_message(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def on_end(self, step: int, state: str) -> None:
        self._bar.stop()


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
