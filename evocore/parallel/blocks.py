"""The blocks of a model: what its lists of modules hold, whatever a family calls them.

Modules are in the order in which forward uses them, as everywhere in ``evocore.parallel``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence

from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All blocks of a model, or of what a pipeline stage has of one."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child.children()]


def units_by_part(model: nn.Module, starts: Collection[int]) -> list[list[nn.Module]]:
    """Embedding, each block, norm and head: of each part of a model that begins with one of the blocks ``starts``.

    What comes before the blocks is in the first part, and everything behind them in the last.
    """
    parts: list[list[nn.Module]] = [[]]
    blocks = 0
    for child in model.children():
        has_blocks = isinstance(child, nn.ModuleList)
        for unit in child.children() if has_blocks else [child]:
            if has_blocks and blocks and blocks in starts:
                parts.append([])
            blocks += has_blocks
            parts[-1].append(unit)
    return parts


def last_layer(block: nn.Module) -> nn.Module:
    """The last module with a parameter of its own: what a block ends with."""
    return [module for module in block.modules() if any(True for _ in module.parameters(recurse=False))][-1]


def part_of(block: int, starts: Sequence[int]) -> int:
    """Which part of a model a block is in, of those that begin with the blocks ``starts``, ascending from 0."""
    return bisect_right(starts, block) - 1
