"""What shadow mode found in a step: kept on the device until the step is over, then written and summed up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evocore.ops.accuracy import LIMIT
from evocore.training.shadow.fingerprints import as_fields, fingerprint
from evocore.training.shadow.records import RecordFile

RATIOS_FILE = "kernels_check.jsonl"
FINGERPRINTS_FILE = "fingerprints.jsonl"

Facts = dict[str, Any]


class StepLog:
    """Collects the figures of one step after the other.

    Args:
        folder: of the run.
        first_step: that the run will make.
        fingerprints: whether those are recorded.
    """

    def __init__(self, folder: Path, first_step: int, *, fingerprints: bool) -> None:
        self._ratios_file = RecordFile(folder / RATIOS_FILE, first_step)
        self._fingerprints_file = RecordFile(folder / FINGERPRINTS_FILE, first_step) if fingerprints else None
        self._step = 0
        self._data: list[Facts] = []
        self._prints: list[tuple[Facts, Tensor]] = []
        self._ratios: list[tuple[Facts, dict[str, Tensor]]] = []

    def start(self, step: int, data: Sequence[tuple[str, int]]) -> None:
        """Begin a step; ``data`` has digest and number of tokens of each micro-batch."""
        self._step, self._prints, self._ratios = step, [], []
        self._data = [
            {"step": step, "micro_batch": number, "data": digest, "tokens": tokens}
            for number, (digest, tokens) in enumerate(data)
        ]

    def add_fingerprints(self, call: Facts, direction: str, tensors: Mapping[str, Tensor]) -> None:
        """Record the floating-point tensors among what a call computed."""
        if self._fingerprints_file is None:
            return
        for name, x in tensors.items():
            if x.is_floating_point():
                facts = {"step": self._step, **call, "direction": direction, "result": name, "shape": list(x.shape)}
                self._prints.append((facts, fingerprint(x)))

    def add_ratios(self, call: Facts, direction: str, ratios: dict[str, Tensor], part: str) -> None:
        """Record how a call compares with its reference."""
        if ratios:
            self._ratios.append(({"step": self._step, **call, "direction": direction, "part": part}, ratios))

    def end(self, loss: float, grad_norm: float) -> list[str]:
        """Write the step; a line that sums it up, and one for each kernel whose error exceeds the limit."""
        rows = _on_host([x for _, ratios in self._ratios for x in ratios.values()])
        checked: list[Facts] = []
        for facts, ratios in self._ratios:
            found = {name: rows.pop(0) for name in ratios}
            worst = max(found, key=lambda name: found[name])
            checked.append(facts | {"result": worst, "ratio": found[worst]})
        self._ratios_file.add(checked)
        if self._fingerprints_file is not None:
            numbers = _on_host([x for _, x in self._prints])
            prints = [facts | as_fields(row) for (facts, _), row in zip(self._prints, numbers, strict=True)]
            figures = {"step": self._step, "loss": loss, "grad_norm": grad_norm}
            self._fingerprints_file.add([*self._data, *prints, figures])
        self._prints, self._ratios = [], []
        return _told(self._step, checked)


def _on_host(rows: list[Tensor]) -> list[Any]:
    """All at once: the device is waited for a single time."""
    return torch.stack(rows).tolist() if rows else []


def _told(step: int, checked: list[Facts]) -> list[str]:
    if not checked:
        return []
    by_op: dict[str, list[Facts]] = {}
    for facts in sorted(checked, key=lambda facts: -facts["ratio"]):
        by_op.setdefault(facts["op"], []).append(facts)
    listing = ", ".join(f"{op} {facts[0]['ratio']:.2f}" for op, facts in sorted(by_op.items()))
    lines = [f"kernels check, step {step}: worst error over the reference's ({LIMIT:g} is the limit): {listing}"]
    for op, passes in sorted(by_op.items()):
        beyond = [one for one in passes if one["ratio"] > LIMIT]
        if beyond:
            worst = beyond[0]
            lines.append(
                f"WARNING kernels check, step {step}: {op} of provider {worst['provider']} in {worst['layer']}, "
                f"{worst['direction']}: {worst['result']} has {worst['ratio']:.3g} times the reference's error; "
                f"the limit is {LIMIT:g}, which {len(beyond)} of {len(passes)} passes exceed"
            )
    return lines
