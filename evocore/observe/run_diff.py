"""Finds where two runs part: the first call of a kernel whose fingerprints differ by more than rounding explains.

The runs may have been made on different devices, with different kernels and in different precisions. Fingerprints
stand in the order in which the calls happened, so what parts first is the culprit or its neighbour; what comes after
it has inherited the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from evocore.observe.run_facts import RunFacts

EPS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Spacing of the numbers around 1 in each dtype."""
TIMES_EPS = {"float64": 256, "float32": 256, "float16": 16, "bfloat16": 8}
"""Default tolerance: what rounding may add up to over the layers of a model before the first optimizer step."""

Record = dict[str, Any]
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Parting:
    """One result of one call that differs.

    Attributes:
        what: the statistic that differs most, or "shape".
        difference: relative to the size of the result.
        providers: of the two runs.
    """

    step: int
    micro_batch: int
    direction: str
    op: str
    layer: str
    call: int
    result: str
    what: str
    a: Any
    b: Any
    difference: float
    providers: tuple[str, str]

    def __str__(self) -> str:
        kernels = " against ".join(dict.fromkeys(self.providers))
        return (
            f"step {self.step}, micro-batch {self.micro_batch}, {self.direction} of {self.op} ({kernels}) in "
            f"{self.layer}, call {self.call}: {self.result}, {self.what} {_short(self.a)} against {_short(self.b)}, "
            f"relative difference {self.difference:.3g}"
        )


@dataclass
class Comparison:
    """How two runs compare.

    Attributes:
        tolerance: relative difference that is allowed.
        because: where the tolerance comes from.
        steps: that both runs recorded; only these are compared.
        calls: results that were compared.
        partings: in the order of run A.
        alone: calls that only one of the runs made, in words.
        data: the first micro-batch whose data differ, as (step, micro-batch); nothing later is compared.
        figures: (step, name, a, b, relative difference) of losses and gradient norms.
    """

    tolerance: float
    because: str
    steps: list[int]
    calls: int = 0
    partings: list[Parting] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    data: tuple[int, int] | None = None
    figures: list[tuple[int, str, Any, Any, float]] = field(default_factory=list)

    @property
    def parted_figures(self) -> list[tuple[int, str, Any, Any, float]]:
        """Losses and gradient norms beyond the tolerance."""
        return [row for row in self.figures if not row[-1] <= self.tolerance]

    @property
    def agree(self) -> bool:
        return self.data is None and not (self.partings or self.alone or self.parted_figures)


def compare_runs(a: RunFacts, b: RunFacts, tolerance: float | None = None) -> Comparison:
    """Compare what two runs recorded at the steps that both sampled.

    Args:
        tolerance: relative difference to allow; None for one that follows from the coarser dtype of the two runs.
    """
    if tolerance is None:
        dtype = max((record["dtype"] for run in (a, b) for record in run.calls()), key=EPS.__getitem__)
        allowed, because = TIMES_EPS[dtype] * EPS[dtype], f"{TIMES_EPS[dtype]} eps of {dtype}"
    else:
        allowed, because = tolerance, "as asked for"
    found = Comparison(allowed, because, sorted(a.steps & b.steps))
    steps = _steps_of_equal_data(a, b, found)
    others = {_place(record): record for record in b.calls() if record["step"] in steps}
    for record in a.calls():
        if record["step"] not in steps:
            continue
        other = others.pop(_place(record), None)
        if other is None:
            found.alone.append(f"only in A: {_words(record)}")
            continue
        found.calls += 1
        parting = _parting(record, other, allowed)
        if parting is not None:
            found.partings.append(parting)
    found.alone += [f"only in B: {_words(record)}" for record in others.values()]
    of_b = {record["step"]: record for record in b.figures()}
    for record in a.figures():
        if record["step"] in steps:
            for name in ("loss", "grad_norm"):
                x, y = record[name], of_b[record["step"]][name]
                found.figures.append((record["step"], name, x, y, _difference(x, y, 0.0)))
    return found


def _steps_of_equal_data(a: RunFacts, b: RunFacts, found: Comparison) -> set[int]:
    """The common steps before the first whose data differ, which is noted."""
    theirs = {(record["step"], record["micro_batch"]): record["data"] for record in b.data()}
    mine = {(record["step"], record["micro_batch"]): record["data"] for record in a.data()}
    for key in sorted(mine.keys() | theirs.keys()):
        if key[0] in found.steps and mine.get(key) != theirs.get(key):
            found.data = key
            return {step for step in found.steps if step < key[0]}
    return set(found.steps)


def _parting(a: Record, b: Record, tolerance: float) -> Parting | None:
    """The largest difference of two fingerprints if it is beyond the tolerance."""
    if a["shape"] != b["shape"]:
        candidates = [("shape", a["shape"], b["shape"], float("inf"))]
    else:
        candidates = list(_differences(a, b))
    what, x, y, difference = max(candidates, key=lambda entry: entry[-1])
    if difference <= tolerance:
        return None
    names = ("step", "micro_batch", "direction", "op", "layer", "call", "result")
    return Parting(
        **{name: a[name] for name in names},
        what=what,
        a=x,
        b=y,
        difference=difference,
        providers=(a["provider"], b["provider"]),
    )


def _differences(a: Record, b: Record) -> Iterator[tuple[str, Any, Any, float]]:
    """Each number of two fingerprints; a mean and single elements may cancel, so they are seen against the rms."""
    finite = [x for x in (a["rms"], b["rms"]) if isinstance(x, float | int)]
    size = max(finite, default=0.0)
    for name in ("rms", "max"):
        yield name, a[name], b[name], _difference(a[name], b[name], 0.0)
    yield "mean", a["mean"], b["mean"], _difference(a["mean"], b["mean"], size)
    for number, (x, y) in enumerate(zip(a["elements"], b["elements"], strict=True)):
        yield f"element {number}", x, y, _difference(x, y, size)


def _difference(x: Any, y: Any, size: float) -> float:
    """Relative to the largest of x, y and ``size``; words for what is not finite must be equal."""
    if x == y:
        return 0.0
    if isinstance(x, str) or isinstance(y, str):
        return float("inf")
    return float(abs(x - y) / max(abs(x), abs(y), size))


def _place(record: Mapping[str, Any]) -> Place:
    return tuple(record[name] for name in ("step", "micro_batch", "layer", "op", "call", "direction", "result"))


def _words(record: Mapping[str, Any]) -> str:
    return (
        f"step {record['step']}, micro-batch {record['micro_batch']}, {record['direction']} of {record['op']} in "
        f"{record['layer']}, call {record['call']}: {record['result']}"
    )


def _short(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else str(value)
