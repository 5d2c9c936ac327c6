"""How keys and values travel around a context group, and their gradients behind them.

The ranks of a context group are a table: a row is a window, the inner ring, whose ranks are close; a column is an
outer ring, one rank of each window. A block of keys and values goes around its own window; meanwhile each rank sends
the one that it started with to the next window, where it goes around in the next round. So the slow links between
windows have the time of a whole round (LoongTrain; Gu et al., 2024). With one window, or windows of one
rank, this is the plain ring.

Sizes: W ranks of a window, O windows; C = W O ranks of the context group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from evocore.ops.collectives import Handle
from evocore.parallel.groups import Group, Groups
from evocore.parallel.sharding import Part


@dataclass(frozen=True)
class Rings:
    """The rings that one rank is in, by their names in ``Topology``."""

    context: Group
    intra_window: Group
    inter_window: Group
    dkv_intra_window: Group
    dkv_inter_window: Group

    @classmethod
    def of(cls, groups: Groups) -> Rings:
        """Every rank asks at the same time, as process groups are made here."""
        return cls(*(groups.get(name) for name in cls.__dataclass_fields__))

    @property
    def place(self) -> Part:
        """Of this rank in the context group."""
        return Part(self.context.rank, self.context.size)

    def owner(self, outer: int, inner: int) -> int:
        """Whose block this rank has after so many rounds and so many steps of the next: a place in ``context``."""
        # Each ring is where one digit of the rank runs, so that what the digits add to a rank number adds up.
        me = self.context.ranks[self.context.rank]
        across = _before(self.intra_window, inner) - me
        along = _before(self.inter_window, outer) - me
        return self.context.ranks.index(me + across + along)


class Arriving:
    """What the rank before has sent, once it was waited for."""

    def __init__(self, received: Tensor, sent: Tensor, handles: tuple[Handle, ...]) -> None:
        self._received, self._sent, self._handles = received, sent, handles

    def wait(self) -> Tensor:
        """From here on what was sent may be changed, too."""
        for handle in self._handles:
            handle.wait()
        return self._received


def pass_on(tensor: Tensor, ring: Group) -> Arriving:
    """Start to send a contiguous tensor to the next rank and to receive one of its kind from the rank before.

    Alone in the ring, a rank gets its own.
    """
    if ring.size == 1:
        return Arriving(tensor, tensor, ())
    received = torch.empty_like(tensor)
    following, before = (ring.rank + 1) % ring.size, (ring.rank - 1) % ring.size
    # A library that carries out one message after the other would wait for ever if all ranks sent first.
    if ring.rank % 2 == 0:
        sending = ring.send(tensor, following)
        return Arriving(received, tensor, (sending, ring.recv(received, before)))
    receiving = ring.recv(received, before)
    return Arriving(received, tensor, (receiving, ring.send(tensor, following)))


def travelling(own: Tensor, rings: Rings) -> Iterator[tuple[int, Tensor]]:
    """The blocks of all ranks of the context group, this rank's first, each with its owner's place.

    While the caller computes with one block, the next is on its way. No block may be changed.
    """
    windows, window = rings.inter_window.size, rings.intra_window.size
    first = own
    for outer in range(windows):
        from_window = pass_on(first, rings.inter_window) if outer + 1 < windows else None
        block = first
        for inner in range(window):
            from_rank = pass_on(block, rings.intra_window) if inner + 1 < window else None
            yield rings.owner(outer, inner), block
            if from_rank is not None:
                block = from_rank.wait()
        if from_window is not None:
            first = from_window.wait()


class Homeward:
    """Sums over ranks of the gradients of the blocks that travel, one step behind these, in the same order.

    For each block a rank waits for what the ranks before have added up, adds its own share and sends it on. After a
    round the sum of a window is with the rank that started it, which adds it to that of the windows before and sends
    it to the next window; after all rounds it is with the block's owner. The groups are other than those of the
    blocks, so that neither waits for the other.

    Args:
        block: of the shape of all blocks.
        dtype: of the sums.
    """

    def __init__(self, block: Tensor, dtype: torch.dtype, rings: Rings) -> None:
        self._block, self._dtype, self._rings = block, dtype, rings
        self._from_rank: Arriving | None = None
        self._from_window: Arriving | None = None
        self._steps = 0

    def arrived(self) -> Tensor:
        """The sum so far for the block at hand, to be added to."""
        if self._from_rank is not None:
            total = self._from_rank.wait()
            if self._steps % self._rings.intra_window.size:
                return total
            self._end_round(total)
        return torch.zeros_like(self._block, dtype=self._dtype)

    def send_on(self, total: Tensor) -> None:
        """Done with the block at hand."""
        self._steps += 1
        if self._rings.intra_window.size == 1:
            self._end_round(total)
        else:
            self._from_rank = pass_on(total, self._rings.dkv_intra_window)

    def result(self) -> Tensor:
        """The sum for this rank's own block, after all blocks."""
        if self._from_rank is not None:
            self._end_round(self._from_rank.wait())
        assert self._from_window is not None, "there is at least one block"
        return self._from_window.wait()

    def _end_round(self, of_window: Tensor) -> None:
        if self._from_window is not None:
            of_window += self._from_window.wait()
        self._from_window = pass_on(of_window, self._rings.dkv_inter_window)


def _before(ring: Group, steps: int) -> int:
    """The global rank that is so many steps before this one."""
    return ring.ranks[(ring.rank - steps) % ring.size]
