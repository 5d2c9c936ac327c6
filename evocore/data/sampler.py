"""Which packs each step consumes: one global order per epoch, cut into steps, of which every data rank takes a slice.

The order never depends on the number of data ranks, and the state is a handful of integers, so a run resumes at once
and with any number of ranks: as long as micro_num * data_size stays the same, so do the packs of every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from evocore.data.permutation import Permutation
from evocore.errors import UserError
from evocore.seeds import derive_seed

_BLOCK = 1024  # elements of the order that are computed at once


@dataclass(frozen=True)
class RampUp:
    """Packs per data rank and step: ``start + increment * (batch // every)``, but at most ``micro_num``."""

    start: int
    increment: int
    every: int

    @classmethod
    def parse(cls, text: str, micro_num: int) -> RampUp:
        """From ``data.rampup_batch_size``, "START INCREMENT EVERY"; the empty text means no ramp-up.

        Raises:
            UserError: if the text has another form or starts above ``micro_num``.
        """
        if not text.strip():
            return cls(micro_num, 0, 1)
        words = text.split()
        if len(words) == 3 and all(word.isdecimal() for word in words):
            ramp = cls(*map(int, words))
            if 1 <= ramp.start <= micro_num and ramp.every >= 1:
                return ramp
        raise UserError(
            f"data.rampup_batch_size is {text!r}",
            f'"START INCREMENT EVERY": three whole numbers, 1 <= START <= {micro_num} (data.micro_num), EVERY >= 1',
            'write for example "1 1 1000", or "" for no ramp-up',
        )

    def at(self, batch: int, micro_num: int) -> int:
        """Packs per data rank in batch number ``batch``."""
        return min(micro_num, self.start + self.increment * (batch // self.every))


@dataclass(frozen=True)
class SkipBatches:
    """Batch numbers, as inclusive ranges, that are consumed without training on them."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> SkipBatches:
        """From ``data.skip_batches``, for example "2-14,20".

        Raises:
            UserError: if the text has another form or the ranges do not ascend.
        """
        ranges: list[tuple[int, int]] = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            ends = [end.strip() for end in part.split("-")]
            good = len(ends) <= 2 and all(end.isdecimal() for end in ends)
            first, last = (int(ends[0]), int(ends[-1])) if good else (0, -1)
            if first > last or (ranges and first <= ranges[-1][1]):
                raise UserError(
                    f"data.skip_batches is {text!r}: {part!r} is out of place",
                    "batch numbers and inclusive ranges in ascending order",
                    'write for example "2-14,20"',
                )
            ranges.append((first, last))
        return cls(tuple(ranges))

    def __contains__(self, batch: int) -> bool:
        return any(first <= batch <= last for first, last in self.ranges)


@dataclass(frozen=True)
class Draw:
    """The packs of one data rank in batch ``batch_count``, in order; ``skipped`` says that nobody is to read them."""

    batch_count: int
    packs: NDArray[np.int64]
    skipped: bool


@dataclass
class Sampler:
    """Draws packs batch by batch; what is left at the end of an epoch and too little for a batch is dropped.

    Args:
        num_packs: packs in an epoch.
        fingerprint: of the packs, see ``Packing.fingerprint``.
        micro_num: packs per data rank and batch, after ramp-up.
        data_rank, data_size: this data rank, and how many there are.
        seed: of the order; epoch ``e`` is the permutation by (seed, e).

    Raises:
        UserError: if an epoch is smaller than one batch.
    """

    num_packs: int
    fingerprint: int
    micro_num: int
    data_rank: int
    data_size: int
    seed: int
    ramp_up: RampUp | None = None
    skip: SkipBatches = field(default_factory=SkipBatches)
    epoch: int = 0
    consumed: int = 0
    batch_count: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.data_rank < self.data_size
        needed = self.micro_num * self.data_size
        if self.num_packs < needed:
            raise UserError(
                f"the training data makes {self.num_packs} packs, one step takes {needed} "
                f"(data.micro_num {self.micro_num} x {self.data_size} data ranks)",
                "data for at least one step; a pack is seq_len * micro_bsz tokens",
                "lower data.seq_len, data.micro_bsz or data.micro_num, or use more data",
            )
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._order = Permutation(self.num_packs, derive_seed(self.seed, 2, self.epoch))
        self._block_start, self._block = 0, np.empty(0, np.int64)

    def _packs(self, first: int, count: int) -> NDArray[np.int64]:
        """Elements of the order, from a block: to compute one costs nearly as much as to compute all of it."""
        if first < self._block_start or first + count > self._block_start + len(self._block):
            stop = min(first + max(count, _BLOCK), self.num_packs)
            self._block_start, self._block = first, self._order(np.arange(first, stop))
        return self._block[first - self._block_start :][:count]

    def draw(self) -> Draw:
        """The next batch; the state moves behind it."""
        share = self.micro_num if self.ramp_up is None else self.ramp_up.at(self.batch_count, self.micro_num)
        if self.consumed + share * self.data_size > self.num_packs:
            self.epoch, self.consumed = self.epoch + 1, 0
            self._begin_epoch()
        first = self.consumed + self.data_rank * share
        draw = Draw(self.batch_count, self._packs(first, share), self.batch_count in self.skip)
        self.consumed += share * self.data_size
        self.batch_count += 1
        return draw

    def state_dict(self) -> dict[str, int]:
        """Where the order stands; the same on every rank and for every number of ranks."""
        return {
            "epoch": self.epoch,
            "consumed": self.consumed,
            "seed": self.seed,
            "batch_count": self.batch_count,
            "num_packs": self.num_packs,
            "fingerprint": self.fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on from a state, perhaps with another number of data ranks.

        Raises:
            UserError: if the data, its packing or the seed is not that of the state: the order would be another one.
        """
        mine = self.state_dict()
        fixed = ("num_packs", "fingerprint", "seed")
        changed = [f"{key} was {state[key]}, is {mine[key]}" for key in fixed if state[key] != mine[key]]
        if changed:
            raise UserError(
                f"the training data is not that of the checkpoint: {', '.join(changed)}",
                "the same files, data.seed, data.seq_len, data.micro_bsz, data.min_length and packing",
                "restore these, or load the model and optimizer without the data state to begin a new pass",
            )
        self.epoch, self.consumed, self.batch_count = state["epoch"], state["consumed"], state["batch_count"]
        self._begin_epoch()
