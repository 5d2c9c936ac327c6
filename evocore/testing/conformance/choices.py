"""Choices that a drawn case is made of; written down they are its label, so every drawn case can be had again.

Where the choices come from is open: from a seeded generator in the command, from hypothesis in tests, from a label.
Smaller numbers mean simpler cases, so shrinking is making them smaller.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from evocore.seeds import derive_seed

T = TypeVar("T")

PREFIX = "drawn-"


class Choices:
    """Hands out choices and remembers them.

    Args:
        source: given a count, an integer in ``[0, count)``.

    Attributes:
        made: the integers so far.
    """

    def __init__(self, source: Callable[[int], int]) -> None:
        self._source = source
        self.made: list[int] = []

    @classmethod
    def random(cls, *seed: int | str) -> Choices:
        """From a generator seeded with all of ``seed``, the same on every machine."""
        return cls(random.Random(derive_seed(*seed)).randrange)

    @classmethod
    def again(cls, made: Sequence[int]) -> Choices:
        """From numbers; one that is too large counts as the largest, one that is missing as 0."""
        rest = iter(made)
        return cls(lambda count: min(next(rest, 0), count - 1))

    @property
    def label(self) -> str:
        """All choices so far as the label of a case."""
        return PREFIX + ".".join(map(str, self.made))

    def integer(self, low: int, high: int) -> int:
        """In ``[low, high]``; low is the simplest."""
        made = self._source(high - low + 1)
        self.made.append(made)
        return low + made

    def flag(self) -> bool:
        return bool(self.integer(0, 1))

    def one_of(self, options: Sequence[T]) -> T:
        """The first is the simplest."""
        return options[self.integer(0, len(options) - 1)]


def numbers_of(label: str) -> list[int] | None:
    """The choices that a label holds; None if it is not that of a drawn case."""
    if not label.startswith(PREFIX):
        return None
    numbers = label.removeprefix(PREFIX).split(".")
    return [int(number) for number in numbers] if all(number.isdecimal() for number in numbers) else None


def simpler(made: Sequence[int]) -> Iterator[list[int]]:
    """Choices like these with one made smaller, the boldest attempts first: to 0, by a half, a quarter, ... , one."""
    for halvings in range(max(made, default=0).bit_length()):
        for index, number in enumerate(made):
            if number >> halvings:
                yield [*made[:index], number - (number >> halvings), *made[index + 1 :]]
