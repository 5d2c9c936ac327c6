"""Several mistakes as one error: people mend a config in one pass, not one mistake per start."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from evocore.errors import UserError


def combined(problems: Sequence[UserError], title: str) -> UserError:
    """``problems`` as one error; a single one stays as it is.

    Args:
        problems: at least one.
        title: begins the list, e.g. ``"configs/x.py"``.
    """
    assert problems
    if len(problems) == 1:
        return problems[0]
    lines = [
        f"  {number}. {one.wrong}\n     expected: {one.expected}\n     to fix: {one.fix}"
        for number, one in enumerate(problems, 1)
    ]
    return UserError(
        "\n".join([f"{title}: {len(problems)} mistakes", *lines]), "none of these", "mend each as its line says"
    )


def shown(value: Any) -> str:
    """A value for an error message, cut where it is long."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 120
    short.maxlist = short.maxdict = short.maxtuple = 8
    return short.repr(value)
