"""Validation sets: every token of a set is evaluated once, whatever the number of data ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from evocore.data.batch import MicroBatch
from evocore.data.packing import Packing


@dataclass(frozen=True)
class ValidSet:
    """One pass over this data rank's share, in a fixed order; iterate it as often as you like.

    Every rank gets the same number of micro-batches, so that collectives match. Where the packs do not divide, some
    ranks end with a filler that has no target: sum losses and counts of targets over ranks, then divide.

    Args:
        max_packs: look only at the first so many packs of the whole set; None takes all.
    """

    packing: Packing
    data_rank: int
    data_size: int
    max_packs: int | None = None

    @property
    def num_packs(self) -> int:
        """Packs that all ranks together evaluate."""
        return len(self.packing) if self.max_packs is None else min(len(self.packing), self.max_packs)

    def __len__(self) -> int:
        """Micro-batches of each rank."""
        return -(-self.num_packs // self.data_size)

    def __iter__(self) -> Iterator[MicroBatch]:
        for round_number in range(len(self)):
            pack = round_number * self.data_size + self.data_rank
            yield self.packing[pack] if pack < self.num_packs else self.packing.filler()
