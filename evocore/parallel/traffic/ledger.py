"""Adds up what is exchanged, by group, op and purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from evocore.parallel.layout import Layout


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange of one rank in one step.

    Attributes:
        group: a name of ``Topology.names``.
        op: the method of ``Collectives``.
        purpose: what is exchanged, in a few words.
        calls: how often.
        bytes: of all calls, as ``RecordingCollectives`` counts: the whole (gathered, unreduced) tensor for all_gather
            and reduce_scatter, what goes in for all_to_all, the tensor otherwise.
    """

    group: str
    op: str
    purpose: str
    calls: int
    bytes: int


class Ledger:
    """Of one rank; a group of one rank exchanges nothing, and neither does anybody who has nothing."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self._repeat = layout, 1
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """What is added inside happens so often."""
        before, self._repeat = self._repeat, self._repeat * times
        yield
        self._repeat = before

    def add(self, group: str, op: str, purpose: str, size: int, times: int = 1) -> None:
        """``times`` calls with ``size`` bytes each."""
        if size:
            self.add_total(group, op, purpose, times, times * size)

    def add_total(self, group: str, op: str, purpose: str, calls: int, size: int) -> None:
        """Calls with ``size`` bytes together, which may be none."""
        if calls * self._repeat and self._layout.part(group).parts > 1:
            self._calls[group, op, purpose] += calls * self._repeat
            self._bytes[group, op, purpose] += size * self._repeat

    def exchanges(self) -> list[Exchange]:
        """One entry per group, op and purpose, in the order in which they were first added."""
        return [Exchange(*key, calls, self._bytes[key]) for key, calls in self._calls.items()]
