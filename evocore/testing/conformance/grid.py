"""The grid of every op: what is declared, what can be drawn, and one case by its label."""

from __future__ import annotations

import torch

from evocore.testing.conformance import attention, elementwise, experts, losses, norms, optimizer
from evocore.testing.conformance.choices import Choices, numbers_of
from evocore.testing.conformance.example import SIZES, Case, Grid

GRIDS: dict[str, Grid] = {
    **attention.GRIDS,
    **norms.GRIDS,
    **elementwise.GRIDS,
    **losses.GRIDS,
    **experts.GRIDS,
    **optimizer.GRIDS,
}
"""Op -> its grid; every contract has one."""


def cases(op: str, dtype: torch.dtype = torch.bfloat16, *, largest: str = "small") -> list[Case]:
    """The declared cases of an op.

    Args:
        op: name of the contract.
        dtype: leaves out what would be another case once more in this dtype.
        largest: one of ``SIZES``; larger cases are left out.
    """
    wanted = SIZES[: SIZES.index(largest) + 1]
    return [case for case in GRIDS[op].cases if case.size in wanted and (dtype.itemsize < 4 or not case.mixed)]


def drawn_case(op: str, choices: Choices) -> Case:
    """The case that ``choices`` lead to; its label holds them all."""
    recipe = GRIDS[op].draw(choices)
    return Case(op, choices.label, recipe, representative=False)


def simplified(case: Case, made: list[int]) -> Case | None:
    """The drawn case of other choices; None if it is ``case`` again."""
    other = drawn_case(case.op, Choices.again(made))
    return None if other.label == case.label else other


def case_named(op: str, label: str) -> Case | None:
    """The declared or drawn case of this label; None if there is none."""
    numbers = numbers_of(label)
    if numbers is None:
        return next((case for case in GRIDS[op].cases if case.label == label), None)
    case = drawn_case(op, Choices.again(numbers))
    return case if case.label == label else None
