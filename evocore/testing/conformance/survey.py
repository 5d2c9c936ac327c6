"""Checks every kernel that is offered for a device, and says what became of each."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from evocore.ops.contracts import check_contracts
from evocore.ops.kernel import Kernel
from evocore.testing.conformance.check import Checker, ConformanceError, KernelImportError, short
from evocore.testing.conformance.choices import numbers_of, simpler
from evocore.testing.conformance.example import Case
from evocore.testing.conformance.grid import simplified
from evocore.testing.conformance.selection import Selection

PATIENCE = 40
"""Simpler cases tried for one that was drawn and failed."""


@dataclass(frozen=True)
class Failure:
    """One case that a kernel failed.

    Attributes:
        case: its label; empty if the kernel failed as a whole.
        what: what is wrong, in one line.
        reproducer: the command that shows it again.
    """

    case: str
    what: str
    reproducer: str


@dataclass
class Row:
    """What became of one kernel in one dtype.

    Attributes:
        dtype: empty if the kernel failed as a whole.
        deterministic: whether the kernel claims to be; a provider may offer two.
        passed: how many cases.
        worst: the largest error of the cases that passed, as a multiple of the allowed one.
        seconds: that the checks took.
        shown: what the cases that passed have shown, one of ``FEATURES`` -> how many cases.
        refusals: reason -> how many cases.
        failures: the others.
    """

    op: str
    provider: str
    dtype: str
    deterministic: bool
    passed: int = 0
    worst: float = 0.0
    seconds: float = 0.0
    shown: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """How many cases."""
        return self.refusals.total()

    @property
    def verdict(self) -> str:
        """``"passed"``, ``"failed"``, or that not one case was served."""
        if self.failures:
            return "failed"
        return "passed" if self.passed else "serves nothing of the grid"


def conform(
    checker: Checker,
    selection: Selection = Selection(),  # noqa: B008 - it is frozen
    progress: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Check what is selected of what is offered for the checker's device.

    Args:
        checker: holds the kernels and the device.
        selection: which of them, and on which cases.
        progress: told what is being checked.

    Returns:
        One row per kernel and dtype, by op and provider.

    Raises:
        UserError: if the selection names what does not exist, or a plug-in offers a kernel for no contract.
    """
    check_contracts(checker.kernels)
    selection.validate(checker)
    rows: list[Row] = []
    selected = [kernel for kernel in checker.offered() if selection.takes(kernel)]
    for op in sorted({kernel.op for kernel in selected}):
        of_op = _Survey(checker, selection, [kernel for kernel in selected if kernel.op == op], progress)
        rows += of_op.rows(op)
    return rows


class _Survey:
    """Of one op. Case by case, so that what the references give is computed once for all kernels."""

    def __init__(
        self, checker: Checker, selection: Selection, kernels: list[Kernel], progress: Callable[[str], None]
    ) -> None:
        self._checker, self._selection, self._kernels, self._progress = checker, selection, kernels, progress
        self._rows: dict[tuple[Kernel, torch.dtype | None], Row] = {}
        self._broken: set[Kernel] = set()

    def rows(self, op: str) -> list[Row]:
        for dtype in dict.fromkeys(
            dtype for kernel in self._kernels for dtype in self._selection.dtypes(self._checker, kernel)
        ):
            for case in self._selection.cases(self._checker, op, dtype):
                for kernel in self._kernels:
                    if dtype in self._selection.dtypes(self._checker, kernel) and kernel not in self._broken:
                        self._check(kernel, case, dtype)
        whole = {(kernel, dtype): row for (kernel, dtype), row in self._rows.items() if dtype is None}
        rest = {key: row for key, row in self._rows.items() if key[0] not in self._broken}
        return sorted((whole | rest).values(), key=lambda row: row.provider)

    def _check(self, kernel: Kernel, case: Case, dtype: torch.dtype) -> None:
        row = self._rows.setdefault(
            (kernel, dtype), Row(kernel.op, kernel.provider, short(dtype), kernel.deterministic)
        )
        if numbers_of(case.label) and any(numbers_of(failure.case) for failure in row.failures):
            return  # one that was drawn and failed is enough, the simplest of its kind
        self._progress(f"{kernel.op} {kernel.provider} {short(dtype)} {case.label}")
        start = time.perf_counter()
        try:
            thorough = self._selection.is_thorough(self._checker, kernel, case, dtype)
            outcome = self._checker.check(kernel, case, dtype, thorough=thorough)
        except KernelImportError as error:
            self._broken.add(kernel)
            failure = Failure("", error.what, error.reproducer)
            self._rows[kernel, None] = Row(kernel.op, kernel.provider, "", kernel.deterministic, failures=[failure])
        except ConformanceError as error:
            row.failures.append(self._simplest(kernel, case, dtype, error))
        else:
            if outcome.refused is None:
                row.passed, row.worst = row.passed + 1, max(row.worst, outcome.worst)
                row.shown.update(outcome.shown)
            else:
                row.refusals[outcome.refused] += 1
        row.seconds += time.perf_counter() - start

    def _simplest(self, kernel: Kernel, case: Case, dtype: torch.dtype, error: ConformanceError) -> Failure:
        """The failure of a case, or of the simplest one near it that fails too, if it was drawn."""
        left, made = PATIENCE, numbers_of(case.label)
        while made and left:
            for attempt in simpler(made):
                other = simplified(case, attempt)
                if other is None:
                    continue
                left -= 1
                try:
                    self._checker.check(kernel, other, dtype)
                except ConformanceError as found:
                    case, error, made = other, found, numbers_of(other.label)
                    break
                if not left:
                    return Failure(case.label, error.what, error.reproducer)
            else:
                break
        return Failure(case.label, error.what, error.reproducer)
