"""What the checks of a device and those of its collectives share: how one is named, run and reported.

A check is a function that raises ``ContractError`` with one line that says what the author of the backend must do,
``UnclaimedError`` where the backend does not claim what it checks, ``NotHereError`` where this machine cannot tell.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass

from evocore.testing.conformance.calls import ContractError, during

PARTS = ("kernels", "device", "collectives")
"""Of the kit, in the order in which they run."""


class UnclaimedError(Exception):
    """What the backend does not claim, so that there is nothing to check."""


class NotHereError(Exception):
    """Why this machine or this process cannot tell, whatever the backend claims."""


@dataclass(frozen=True)
class Finding:
    """What became of one check.

    Attributes:
        part: one of ``PARTS``.
        check: its name.
        ranks: how many processes ran it.
        verdict: ``"passed"``, ``"failed"``, ``"not claimed"``, or ``"skipped"`` where a user wanted it so or this
            machine cannot tell.
        what: what is wrong, or why nothing was checked; empty if it passed.
        reproducer: the command that runs it again.
        seconds: that it took.
    """

    part: str
    check: str
    ranks: int
    verdict: str
    what: str
    reproducer: str
    seconds: float

    @property
    def label(self) -> str:
        """Its name, with the number of processes if there can be several."""
        return label_of(self.part, self.check, self.ranks)


def label_of(part: str, check: str, ranks: int) -> str:
    """The name by which a table and a test's id know a check."""
    return f"{check}-{ranks}-{'rank' if ranks == 1 else 'ranks'}" if part == "collectives" else check


def reproducer(backend: str, part: str, check: str) -> str:
    """The command that runs a check again."""
    return shlex.join(["evocore", "conform", "--backend", backend, "--part", part, "--check", check])


def find(run: Callable[[], None], *, backend: str, part: str, check: str, ranks: int = 1) -> Finding:
    """Run one check; whatever it raises is a finding."""
    start = time.perf_counter()
    try:
        with during():
            verdict, what = _unless_violated(run)
    except ContractError as violation:
        verdict, what = "failed", str(violation)
    seconds = time.perf_counter() - start
    return Finding(part, check, ranks, verdict, what, reproducer(backend, part, check), seconds)


def require(holds: bool, otherwise: str) -> None:
    """Raise a ``ContractError`` with this line unless it holds."""
    if not holds:
        raise ContractError(otherwise)


def _unless_violated(run: Callable[[], None]) -> tuple[str, str]:
    """The verdict, and the reason if it did not pass."""
    try:
        run()
    except UnclaimedError as reason:
        return "not claimed", str(reason)
    except NotHereError as reason:
        return "skipped", str(reason)
    return "passed", ""
