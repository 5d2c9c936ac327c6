"""The two ways in which a checkpoint can fail a user, told apart so that a trainer can act on them."""

from __future__ import annotations

from pathlib import Path

from evocore.errors import UserError


class DamagedCheckpointError(UserError):
    """The checkpoint was cut short or altered; an older one may still be good.

    Attributes:
        problem: what is wrong with it, in a few words without its path.
    """

    problem: str = ""


class SaveError(UserError):
    """The checkpoint could not be written; nothing of it is left behind, and the ones before it are untouched."""


def damaged(path: Path, problem: str) -> DamagedCheckpointError:
    """The error for a checkpoint at ``path`` of which ``problem`` says what is wrong."""
    error = DamagedCheckpointError(
        wrong=f"checkpoint {path} is damaged: {problem}",
        expected="every file that its manifest.json lists, with the size and SHA-256 written there",
        fix="use an older checkpoint (`evocore checkpoint ls FOLDER` lists them) or a fresh copy of this one",
    )
    error.problem = problem
    return error
