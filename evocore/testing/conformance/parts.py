"""The parts of the kit besides kernels: which checks of a device and its collectives run, and running them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import closing
from dataclasses import dataclass
from difflib import get_close_matches

from evocore.backend import Backend
from evocore.errors import UserError
from evocore.testing.conformance.collectives import COLLECTIVES, CollectivesChecker
from evocore.testing.conformance.device import DEVICE_CHECKS, check_device
from evocore.testing.conformance.facilities import PARTS, Finding, label_of, reproducer

ALL = "all"

CHECKS: tuple[tuple[str, str, int], ...] = (
    *(("device", name, 1) for name in DEVICE_CHECKS),
    *(("collectives", name, ranks) for name, ranks in COLLECTIVES),
)
"""Part, name and number of ranks of every check, in the order in which they run."""


def parts_of(part: str | None, *, of_kernels: bool, of_others: bool) -> tuple[str, ...]:
    """The parts that ``--part`` means.

    Args:
        part: one of ``PARTS``, ``"all"``, or None: all, or those that the other options are about.
        of_kernels: whether another option selects kernels.
        of_others: whether another option selects checks of the device or of collectives.

    Raises:
        UserError: if there is no such part, or an option is about a part that is left out.
    """
    if part not in (None, ALL, *PARTS):
        raise UserError(f"--part {part}", f"one of {', '.join((*PARTS, ALL))}", "name one of these, or leave it out")
    if part is None and of_kernels and not of_others:
        return PARTS[:1]
    if part is None and of_others and not of_kernels:
        return PARTS[1:]
    parts = PARTS if part in (None, ALL) else (part,)
    if of_kernels and parts == (part,) and part != "kernels":
        raise UserError(
            f"--part {part} with an option that selects kernels",
            "kernels to select from",
            "leave out --op, --provider, --dtype and --case, or take --part kernels",
        )
    if of_others and parts == ("kernels",):
        raise UserError(
            "--part kernels with --check",
            "--check names a check of the device or of collectives",
            "leave out --check, or take --case for a case of a kernel",
        )
    return tuple(parts)


@dataclass(frozen=True)
class Facilities:
    """Checks of a device and of its collectives.

    Attributes:
        parts: those of ``PARTS`` to take.
        only: names of checks; empty for all.
        skip: names of checks that are reported and not run.
    """

    parts: Collection[str] = PARTS
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()

    def validate(self) -> None:
        """Raise a ``UserError`` if it names a check that does not exist in its parts."""
        known = list(dict.fromkeys(name for part, name, _ in CHECKS if part in self.parts))
        for option, names in (("--check", self.only), ("--skip", self.skip)):
            for name in names:
                if name not in known:
                    close = get_close_matches(name, known, 1)
                    raise UserError(
                        f"{option} {name}: there is none of this name",
                        f"one of {', '.join(known) or 'none at all'}",
                        f"did you mean {close[0]}?" if close else f"leave {option} out",
                    )

    def selected(self) -> list[tuple[str, str, int]]:
        """Those of ``CHECKS`` that are taken, the skipped ones too."""
        return [check for check in CHECKS if check[0] in self.parts and (not self.only or check[1] in self.only)]

    def check(self, backend: Backend, progress: Callable[[str], None] = lambda text: None) -> list[Finding]:
        """Run them; ``progress`` is told what is being checked."""
        findings: list[Finding] = []
        with closing(FacilitiesChecker(backend)) as checker:
            for part, name, ranks in self.selected():
                if name in self.skip:
                    again = reproducer(backend.name, part, name)
                    findings.append(Finding(part, name, ranks, "skipped", "by --skip", again, 0.0))
                    continue
                progress(f"{part} {label_of(part, name, ranks)}")
                findings.append(checker.check(part, name, ranks))
        return findings


class FacilitiesChecker:
    """Runs any of ``CHECKS`` for one backend; keeps the ranks' processes until it is closed."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._collectives = CollectivesChecker(backend)

    def check(self, part: str, name: str, ranks: int) -> Finding:
        """Run one of ``CHECKS``."""
        return check_device(self._backend, name) if part == "device" else self._collectives.check(name, ranks)

    def close(self) -> None:
        """End the processes."""
        self._collectives.close()
