"""What of all that could be checked is to be checked; and what a user can get wrong in saying so."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches

import torch

from evocore.errors import UserError
from evocore.ops.contracts import CONTRACTS
from evocore.ops.kernel import Kernel
from evocore.testing.conformance.check import HOST, Checker, short
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import SIZES, Case
from evocore.testing.conformance.grid import GRIDS, case_named, cases, drawn_case

DRAWS = 5


@dataclass(frozen=True)
class Selection:
    """Which kernels, on which cases, and how.

    Attributes:
        op, provider, dtype: None for all.
        case: label of the only one, declared or drawn; needs ``op``. It is always checked thoroughly.
        largest: one of ``SIZES``; None for small ones on the host, where much is slow, and all on other devices.
        draws: how many cases are drawn for each op besides those declared.
        seed: of the draws.
        thorough: check every property in every case and dtype, also on the host, where an interpreter may be at work;
            there, otherwise, in one dtype of each kernel and in the representative cases.
    """

    op: str | None = None
    provider: str | None = None
    dtype: str | None = None
    case: str | None = None
    largest: str | None = None
    draws: int = DRAWS
    seed: int = 0
    thorough: bool = False

    def validate(self, checker: Checker) -> None:
        """Raise a ``UserError`` if it names what does not exist."""
        offered = checker.offered()
        of_op = [kernel for kernel in offered if self.op in (None, kernel.op)]
        if self.op is not None:
            _one_of("--op", self.op, CONTRACTS)
        if self.op is not None and not of_op:
            raise UserError(
                f"--op {self.op}: no plug-in offers a kernel of it for {checker.backend.name}",
                f"one of {', '.join(sorted({kernel.op for kernel in offered})) or 'none at all'}",
                "leave --op out, or choose another backend (`evocore kernels` lists what is offered)",
            )
        if self.provider is not None:
            _one_of("--provider", self.provider, sorted({kernel.provider for kernel in of_op}))
        named = [kernel for kernel in of_op if self.provider in (None, kernel.provider)]
        if self.dtype is not None:
            _one_of("--dtype", self.dtype, sorted({short(x) for kernel in named for x in checker.dtypes(kernel)}))
        if self.largest is not None:
            _one_of("--sizes", self.largest, SIZES)
        if self.draws < 0:
            raise UserError(f"--draws {self.draws}", "how many cases to draw, 0 or more", "--draws 0 draws none")
        if self.case is not None and self.op is None:
            raise UserError(f"--case {self.case} without --op", "the op that has the case", "name it with --op")
        if self.case is not None and self.op is not None and case_named(self.op, self.case) is None:
            labels = [case.label for case in GRIDS[self.op].cases]
            raise UserError(
                f"--case {self.case}: {self.op} has no such case",
                f"one of {', '.join(labels)}, or what was drawn, as it was printed",
                _likely(self.case, labels) or "copy the label from what `evocore conform` printed",
            )

    def takes(self, kernel: Kernel) -> bool:
        """Whether the kernel is among those selected."""
        return self.op in (None, kernel.op) and self.provider in (None, kernel.provider)

    def dtypes(self, checker: Checker, kernel: Kernel) -> list[torch.dtype]:
        """Those in which the kernel is to be checked."""
        return [dtype for dtype in checker.dtypes(kernel) if self.dtype in (None, short(dtype))]

    def cases(self, checker: Checker, op: str, dtype: torch.dtype) -> list[Case]:
        """The cases of an op in a dtype, the declared ones first."""
        if self.case is not None:
            named = case_named(op, self.case)
            return [] if named is None else [named]
        drawn = [drawn_case(op, Choices.random(self.seed, op, index)) for index in range(self.draws)]
        return cases(op, dtype, largest=self.largest or default_largest(checker)) + drawn

    def is_thorough(self, checker: Checker, kernel: Kernel, case: Case, dtype: torch.dtype) -> bool:
        """Whether every property is checked, rather than one call alone."""
        if self.thorough or self.case is not None or checker.device.type != HOST:
            return True
        return case.representative and dtype == checker.dtypes(kernel)[0]


def default_largest(checker: Checker) -> str:
    """The largest size that is checked where nothing else is said."""
    return SIZES[0] if checker.device.type == HOST else SIZES[-1]


def _one_of(option: str, value: str, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(
            f"{option} {value}: there is none of this name here",
            f"one of {', '.join(known)}",
            _likely(value, known) or f"leave {option} out to check all",
        )


def _likely(value: str, known: Collection[str]) -> str:
    close = get_close_matches(value, known, 1)
    return f"did you mean {close[0]}?" if close else ""
