"""The one exception for mistakes that a user can mend; the command line prints it without a traceback.

Everything else that escapes is a fault of ours or of a plug-in and keeps its traceback.
"""

from __future__ import annotations

import os

TRACEBACK_VARIABLE = "EVOCORE_TRACEBACK"
"""Set to show the traceback of a user's mistake, too."""


def traceback_wanted() -> bool:
    """Whether the environment asks for tracebacks of mistakes."""
    return os.environ.get(TRACEBACK_VARIABLE, "") not in ("", "0")


class UserError(ValueError):
    """A mistake in what evocore was given: three facts, each one line where it can be.

    Args:
        wrong: what is wrong, naming the key, the value and the file.
        expected: what would have been right.
        fix: what to do now.
    """

    def __init__(self, wrong: str, expected: str, fix: str) -> None:
        super().__init__(wrong, expected, fix)
        self.wrong, self.expected, self.fix = wrong, expected, fix

    def __str__(self) -> str:
        return f"{self.wrong}\n  expected: {self.expected}\n  to fix: {self.fix}"
