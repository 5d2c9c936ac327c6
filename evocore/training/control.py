"""Requests that reach a run from outside: signals, and InternEvo's stop file.

A signal only sets a flag; the trainer looks at it between steps, when all ranks can agree on it.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from evocore.errors import UserError


@dataclass
class StopFlag:
    """Set once a signal asked this process to stop."""

    reason: str | None = None


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Catch SIGTERM and the first SIGINT; a second SIGINT interrupts at once. Restores the handlers at the end."""
    flag = StopFlag()

    def handler(number: int, frame: FrameType | None) -> None:
        flag.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class StopFile:
    """A file with an integer: N > 0 saves at step N and stops, N < 0 saves at step -N and goes on, 0 does nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None

    def read(self) -> int:
        """The number in the file; 0 if there is no file.

        Raises:
            UserError: if the file holds anything else.
        """
        if self._path is None or not self._path.is_file():
            return 0
        text = self._path.read_text().strip() or "0"
        try:
            return int(text)
        except ValueError:
            raise UserError(
                f"ckpt.stop_file_path: {self._path} holds {text!r}",
                "one integer: N saves at step N and stops, -N saves and goes on, 0 does nothing",
                f"write 0 to {self._path} or delete it",
            ) from None
