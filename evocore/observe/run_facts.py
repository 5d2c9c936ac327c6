"""What the folders of two runs say about them: their fingerprints, and in what the runs themselves differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from evocore.errors import UserError

Record = dict[str, Any]

FINGERPRINTS = "fingerprints.jsonl"
NAMES_ONLY = ("config.JOB_NAME", "config.run_folder", "environment.command")
"""Facts that tell runs apart without any meaning for what they compute."""


@dataclass(frozen=True)
class RunFacts:
    """A run's records and circumstances.

    Attributes:
        records: of ``fingerprints.jsonl``, in order: data of micro-batches, results of calls, figures of steps.
        facts: dotted name -> value, from ``config.json``, ``kernels.json`` and ``environment.json``.
    """

    path: Path
    records: list[Record]
    facts: dict[str, Any]

    @cached_property
    def steps(self) -> set[int]:
        """The steps that were recorded to their end."""
        return {record["step"] for record in self.figures()}

    def data(self) -> Iterator[Record]:
        return (record for record in self.records if "data" in record)

    def calls(self) -> Iterator[Record]:
        return (record for record in self.records if "op" in record)

    def figures(self) -> Iterator[Record]:
        return (record for record in self.records if "loss" in record)


def read_run(path: Path) -> RunFacts:
    """Read the folder of a run.

    Raises:
        UserError: if it is none, or the run recorded no fingerprints.
    """
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path} is not the folder of a run: it has no config.json",
            "runs/<JOB_NAME>/<time>, as `evocore train` prints it",
            "check the path",
        )
    file = path / FINGERPRINTS
    text = file.read_text() if file.is_file() else ""
    records = [_json(line, file) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    if not any("loss" in record for record in records):
        raise UserError(
            f"{path} holds no fingerprints: {FINGERPRINTS} is {'empty' if file.is_file() else 'missing'}",
            "a run that recorded some on the steps it checked",
            "train again with kernels_check=dict(every=100) in the config, or --set kernels_check.every=100; without "
            "fingerprints=False",
        )
    facts: dict[str, Any] = {}
    facts |= _flat("config", _json_file(path / "config.json").get("values", {}))
    facts |= _flat("environment", _json_file(path / "environment.json"))
    for choice in _json_file(path / "kernels.json").get("choices", []):
        facts[f"kernel.{choice['op']} [{choice['request']}]"] = choice["provider"]
    return RunFacts(path, records, facts)


def require_common_steps(a: RunFacts, b: RunFacts) -> None:
    """Raise a ``UserError`` unless both runs recorded the same step at least once."""
    if not a.steps & b.steps:
        listing = " and ".join(f"{run.path}: {', '.join(map(str, sorted(run.steps)))}" for run in (a, b))
        raise UserError(
            f"the runs recorded no step in common: {listing}",
            "fingerprints of the same steps",
            "train both with the same kernels_check.every, from step 1",
        )


def different_facts(a: RunFacts, b: RunFacts) -> list[tuple[str, Any, Any]]:
    """(name, a, b) of every setting, kernel and circumstance in which two runs differ; None where one lacks it."""
    names = dict.fromkeys([*a.facts, *b.facts])
    return [
        (name, a.facts.get(name), b.facts.get(name))
        for name in names
        if not name.startswith(NAMES_ONLY) and a.facts.get(name) != b.facts.get(name)
    ]


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, entry in value.items():
        found |= _flat(f"{prefix}.{name}", entry)
    return found


def _json_file(path: Path) -> Record:
    return _json(path.read_text(), path) if path.is_file() else {}


def _json(text: str, path: Path) -> Record:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}", "a file as a run writes it", "restore the file") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} holds {text.strip()[:40]!r}", "JSON objects, as a run writes them", "restore the file"
        )
    return content
