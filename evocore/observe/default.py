"""The observers that a run on the command line has."""

from __future__ import annotations

import importlib.util

from rich.console import Console

from evocore.observe.progress import Bar, Log
from evocore.observe.trackers import JSONLines, TensorBoard
from evocore.training.observer import Observer


def default_observers() -> list[Observer]:
    """Metrics and log always, TensorBoard where it is installed, a bar where there is a terminal."""
    console = Console(stderr=True)
    observers: list[Observer] = [JSONLines(), Log(echo=not console.is_terminal)]
    if importlib.util.find_spec("tensorboard") is not None:
        observers.append(TensorBoard())
    if console.is_terminal:
        observers.append(Bar(console))
    return observers
