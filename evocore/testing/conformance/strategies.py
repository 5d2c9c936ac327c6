"""Drawn cases as a hypothesis strategy: for tests, which want what fails shrunk and remembered.

Nothing else of the kit needs hypothesis: ``evocore conform`` draws the same cases with a generator of its own.
"""

from __future__ import annotations

from hypothesis import strategies as st

from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case
from evocore.testing.conformance.grid import drawn_case


def drawn_cases(op: str) -> st.SearchStrategy[Case]:
    """Cases of an op; the label of one is all that is needed to have it again (``case_named``)."""

    @st.composite
    def case(draw: st.DrawFn) -> Case:
        return drawn_case(op, Choices(lambda count: draw(st.integers(0, count - 1))))

    return case()
