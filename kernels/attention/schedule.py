"""Which tile of which document is whose task: the tables that Triton's attention kernels walk through.

Documents differ in length, so a grid as long as the longest would be mostly idle. The host knows the lengths: a table
of the tiles that there are costs it a fraction of a millisecond and the device one small copy. Computed on the device
it would cost launches in place of that copy, and sorting is dear there.
"""

from __future__ import annotations

from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from evocore.ops.attention import CuSeqlens

Side = Literal["queries", "keys"]
FIELDS = 5
"""Numbers of a task: the document's first query token, its queries, its first key token, its keys; the tile's start,
counted in the document."""


class TileTables:
    """Tables by the documents they were made for: all layers of a model that attend alike share one.

    A table lives as long as its documents do.
    """

    def __init__(self) -> None:
        self._tables: WeakKeyDictionary[CuSeqlens, WeakKeyDictionary[CuSeqlens, dict[object, Tensor]]]
        self._tables = WeakKeyDictionary()

    def of(
        self,
        side: Side,
        size: int,
        q_documents: CuSeqlens,
        k_documents: CuSeqlens,
        causal: bool,
        window: int | None,
        device: torch.device,
    ) -> Tensor:
        """``[tiles, FIELDS]``, int32, on ``device``: all tiles of ``size`` queries or keys, most work first."""
        tables = self._tables.setdefault(q_documents, WeakKeyDictionary()).setdefault(k_documents, {})
        wanted = (side, size, causal, window, device)
        if wanted not in tables:
            table = tile_table(side, size, q_documents, k_documents, causal, window)
            pinned = table if device.type == "cpu" else table.pin_memory()
            tables[wanted] = pinned.to(device, non_blocking=True)
        return tables[wanted]


def tile_table(
    side: Side,
    size: int,
    q_documents: CuSeqlens,
    k_documents: CuSeqlens,
    causal: bool,
    window: int | None,
) -> Tensor:
    """As ``TileTables.of``, on the host."""
    q_cuts, k_cuts = (torch.tensor(documents.host) for documents in (q_documents, k_documents))
    queries, keys = q_cuts.diff(), k_cuts.diff()
    own, others = (queries, keys) if side == "queries" else (keys, queries)
    counts = (own + size - 1) // size
    document = torch.arange(len(counts)).repeat_interleave(counts)
    start = (torch.arange(len(document)) - (counts.cumsum(0) - counts)[document]) * size
    own, others = own[document], others[document]
    last = torch.minimum(start + size, own) - 1
    low, high = torch.zeros_like(others), others
    if causal and side == "queries":  # query i sees the keys from i + ahead - window + 1 to i + ahead
        ahead = others - own
        high = last + ahead + 1
        low = low if window is None else start + ahead - window + 1
    elif causal:  # key j is seen by the queries from j - ahead to j - ahead + window - 1
        ahead = own - others
        low = start - ahead
        high = high if window is None else last - ahead + window
    work = torch.minimum(high, others).clamp(min=0) - torch.minimum(low, others).clamp(min=0)
    table = torch.stack((q_cuts[document], queries[document], k_cuts[document], keys[document], start), 1)
    return table[work.argsort(descending=True, stable=True)].int()
