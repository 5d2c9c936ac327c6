"""What a check of collectives has at hand on each rank: numbers that every rank can work out for every other.

The numbers are small and whole, so that sums and averages over 2 or 4 ranks are exact in every dtype and compared to
the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.backend import Backend
from evocore.ops.collectives import Collectives
from evocore.testing.conformance.calls import ContractError, during
from evocore.testing.conformance.check import short

COLUMNS = 3


@dataclass(frozen=True)
class Ranks:
    """This rank's view.

    Attributes:
        store: holds what ranks tell one another beside the collectives.
        patience: that they wait there for one that should have returned at once.
    """

    backend: Backend
    collectives: Collectives
    device: torch.device
    rank: int
    world: int
    store: dist.Store
    patience: timedelta

    def dtypes(self) -> list[torch.dtype]:
        """All that the collectives claim, on every rank in the same order."""
        return sorted(self.collectives.dtypes(), key=str)

    def floats(self) -> list[torch.dtype]:
        """Those that are floating-point numbers."""
        return [dtype for dtype in self.dtypes() if dtype.is_floating_point]

    def put(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """The numbers on this rank's device, contiguous."""
        return numbers.to(dtype).clone(memory_format=torch.contiguous_format).to(self.device)

    def put_with_gaps(self, numbers: Tensor, dtype: torch.dtype) -> Tensor:
        """The same numbers with another one after each, columns first: neither order nor step are those of memory."""
        wide = torch.stack((numbers, numbers + 1), -1).to(dtype).transpose(0, 1).contiguous().to(self.device)
        return wide.transpose(0, 1)[..., 0]

    def empty(self, rows: int, dtype: torch.dtype) -> Tensor:
        """Room for a result, filled with a number that no result holds."""
        return torch.full((rows, COLUMNS), 99, dtype=dtype, device=self.device)

    def tell(self, what: str) -> None:
        """Let the other ranks know that this one has got so far."""
        self.store.set(f"{what}-{self.rank}", "")

    def hear(self, what: str, rank: int, otherwise: str) -> None:
        """Wait for what another rank tells.

        Raises:
            ContractError: ``otherwise``, if it does not come.
        """
        try:
            self.store.wait([f"{what}-{rank}"], self.patience)
        except RuntimeError as error:  # as a store calls it that has waited long enough
            raise ContractError(otherwise) from error


def numbers(rank: int, rows: int) -> Tensor:
    """What rank ``rank`` holds, in float64 on the host: 6 times its number, and a little by row and column."""
    row, column = torch.arange(rows, dtype=torch.float64), torch.arange(COLUMNS, dtype=torch.float64)
    return 6 * rank + row[:, None] % 8 + column


def everybodys(ranks: Sequence[int], rows: int) -> Tensor:
    """``numbers`` of these ranks, stacked."""
    return torch.stack([numbers(rank, rows) for rank in ranks])


def expect(found: Tensor, expected: Tensor, advice: str) -> None:
    """Compare to the bit with what a plain computation gives on the host.

    Raises:
        ContractError: with the first number that differs, and the advice.
    """
    wanted, got = expected.to(found.dtype), found.cpu()
    if got.shape != wanted.shape:
        raise ContractError(f"a result has shape {list(got.shape)}, expected {list(wanted.shape)}")
    wrong = (got != wanted).nonzero()
    if len(wrong):
        place = tuple(wrong[0].tolist())
        raise ContractError(
            f"{got[place].item():g} instead of {wanted[place].item():g} at {list(place)} "
            f"({len(wrong)} of {got.numel()} differ): {advice}"
        )


@contextmanager
def doing(call: str, dtype: torch.dtype) -> Iterator[None]:
    """Tell what went wrong with the call and the dtype."""
    with during(f"{call} of {short(dtype)}"):
        yield
