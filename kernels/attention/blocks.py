"""Cutting documents into blocks of queries, each with the keys that some of its queries see."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from evocore.kernels.attention.documents import Run
from evocore.kernels.attention.masks import visible

SCORES = 2**20
"""Scores that are held at once where possible: a few megabytes stay in the last cache of a CPU."""
SHORTEST, LONGEST = 32, 128
"""Queries of a block: more make the products efficient, fewer waste less beyond the diagonal."""


class Terms(NamedTuple):
    """The options of ``attention`` in one bundle; ``window`` is None unless ``causal``."""

    causal: bool
    window: int | None
    softcap: float | None
    scale: float


class Block(NamedTuple):
    """Some queries of all documents of a run.

    Attributes:
        rows: of the queries, counted in heads of a group.
        keys: all that these queries see.
        mask: ``[rows, last keys]``, 0 or minus infinity, to be added to the scores of the last keys; None for none.
    """

    rows: slice
    keys: slice
    mask: Tensor | None


def parts(plan: list[Run], heads: int, terms: Terms) -> list[Run]:
    """Cut runs of many documents so that a block's scores fit into ``SCORES``, one document at the least."""
    out = []
    for run in plan:
        most = max(1, SCORES // max(1, heads * min(run.queries, LONGEST) * _width(run, terms)))
        full, rest = divmod(run.documents, most)
        out += [run._replace(documents=most)] * full + [run._replace(documents=rest)] * (rest > 0)
    return out


def blocks(
    run: Run, batch: int, group: int, terms: Terms, dtype: torch.dtype, device: torch.device
) -> Iterator[Block]:
    """The blocks of a run in order, without the queries that see no key.

    Args:
        run: the documents, all of one shape.
        batch: documents times key-value heads.
        group: query heads of a key-value head.
        terms: the options.
        dtype, device: of the masks.
    """
    fitting = SCORES // max(1, batch * group * _width(run, terms))
    blind = unseeing(run, terms)
    count = -(-(run.queries - blind) // min(max(fitting, SHORTEST), LONGEST))
    size = -(-(run.queries - blind) // max(1, count))  # as equal as possible: a short last block would waste the most
    masks: dict[tuple[int, int], Tensor] = {}
    for start in range(blind, run.queries, max(1, size)):
        end = min(start + size, run.queries)
        rows = slice(start * group, end * group)
        if not terms.causal:
            yield Block(rows, slice(0, run.keys), None)
            continue
        last = end + run.keys - run.queries
        first = 0 if terms.window is None else max(0, last - (end - start) - terms.window + 1)
        masked = end - start if terms.window is None else last - first
        shape = (end - start, masked)
        if shape not in masks:
            hidden = ~visible(*shape, terms.window, device)
            mask = torch.zeros(shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
            masks[shape] = mask.repeat_interleave(group, 0)
        yield Block(rows, slice(first, last), masks[shape] if end - start > 1 else None)


def unseeing(run: Run, terms: Terms) -> int:
    """Queries that see no key, at the start of each document: with fewer keys than causal queries, or with none."""
    return max(0, run.queries - run.keys) if terms.causal or run.keys == 0 else 0


def _width(run: Run, terms: Terms) -> int:
    """Most keys of a block."""
    return run.keys if terms.window is None else min(run.keys, terms.window + LONGEST)
