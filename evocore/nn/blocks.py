"""The seam at which a model runs its blocks: what they keep for backward is decided by whoever stands here.

A model says which of its blocks drop their activations; it does not call blocks itself but lets them be run. A
strategy that keeps more than nothing of a dropped block, or moves what is kept, replaces how they are run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class RunBlock(Protocol):
    """Runs one block of a model in one forward pass.

    Args:
        block: called with ``*activations, *shared``.
        activations: what the block before has yielded.
        shared: what all blocks are given alike.
        layer: the block's number in the model.
        recomputed: whether it drops its activations and computes them again in backward.

    Returns:
        What the block returns.
    """

    def __call__(
        self,
        block: nn.Module,
        activations: tuple[Tensor | None, ...],
        shared: tuple[Any, ...],
        *,
        layer: int,
        recomputed: bool,
    ) -> Any: ...


def run_block(
    block: nn.Module,
    activations: tuple[Tensor | None, ...],
    shared: tuple[Any, ...],
    *,
    layer: int,
    recomputed: bool,
) -> Any:
    """What ``RunBlock`` means: of a block that is recomputed nothing is kept but its input."""
    if recomputed and torch.is_grad_enabled():
        # No block draws random numbers.
        return checkpoint(block, *activations, *shared, use_reentrant=False, preserve_rng_state=False)
    return block(*activations, *shared)


def first_of_each(count: int, layers: int, chunks: Iterable[range]) -> frozenset[int]:
    """Spread ``count`` of a model's ``layers`` over chunks of it in proportion: the first ones of each chunk.

    Chunks that make up the whole model have ``count`` in all.
    """
    found: set[int] = set()
    for chunk in chunks:
        before, after = (edge * count // layers for edge in (chunk.start, chunk.stop))
        found.update(chunk[: after - before])
    return frozenset(found)
