"""The files in which shadow mode leaves what it found: one JSON object a line, in the order of events."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class RecordFile:
    """Records with a field ``step``, written at the end of each step.

    A resumed run goes on in the same file: records of steps that will be made again are dropped first, and so is
    half a line that a killed run left.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        self._path = path
        lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first_step]
        path.write_text("".join(kept))

    def add(self, records: Iterable[Mapping[str, Any]]) -> None:
        with self._path.open("a") as file:
            file.writelines(json.dumps(_plain(record)) + "\n" for record in records)


def _plain(value: Any) -> Any:
    """JSON has no infinity and no NaN: they are written as words."""
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
