"""Packed documents as few dense batches: neighbours of equal length share one call."""

from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from evocore.ops.attention import CuSeqlens


class Run(NamedTuple):
    """So many ``documents`` in a row, each of ``queries`` and ``keys`` tokens."""

    documents: int
    queries: int
    keys: int


def runs(q_documents: CuSeqlens, k_documents: CuSeqlens) -> list[Run]:
    """The documents in their order; a dense batch is a single run."""
    shapes = zip(q_documents.lengths, k_documents.lengths, strict=True)
    return [Run(len(list(same)), *shape) for shape, same in groupby(shapes)]


def heads_first(x_TNH: Tensor, count: int) -> Tensor:
    """View a run's tokens as ``[count, N, tokens, H]``, whatever their strides."""
    return x_TNH.unflatten(0, (count, -1)).transpose(1, 2) if x_TNH.shape[0] else x_TNH[None].transpose(1, 2)
