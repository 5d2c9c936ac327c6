"""What packing needs to know of a collection of documents, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

IGNORE_INDEX = -100  # label of a token without loss


class Fragment(NamedTuple):
    """Tokens ``start`` to ``stop`` (exclusive) of one document."""

    document: int
    start: int
    stop: int


class Documents(Protocol):
    """Numbered documents of known lengths.

    Attributes:
        lengths: tokens of each document, int32 or int64, all > 0.
        type_names: dataset types; empty if there are none.
    """

    lengths: NDArray[np.integer]
    type_names: tuple[str, ...]

    def type_of(self, document: int) -> int:
        """Index into ``type_names``."""
        ...

    def describe(self, document: int) -> str:
        """Where a document is, for a message."""
        ...

    def read(self, fragments: Sequence[Fragment]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids of the fragments one after another, and the same with -100 where a token is no target.

        Both int64 and of the summed length; they may share memory, so neither may be written to.
        """
        ...
