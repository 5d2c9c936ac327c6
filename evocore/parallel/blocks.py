"""The blocks of a model: what its lists of modules hold, whatever a family calls them.

Modules are in the order in which forward uses them, as everywhere in ``evocore.parallel``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from torch import nn


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """All blocks of a model, or of what a pipeline stage has of one."""
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child.children()]


def last_layer(block: nn.Module) -> nn.Module:
    """The last module with a parameter of its own: what a block ends with."""
    return [module for module in block.modules() if any(True for _ in module.parameters(recurse=False))][-1]


def part_of(block: int, starts: Sequence[int]) -> int:
    """Which part of a model a block is in, of those that begin with the blocks ``starts``, ascending from 0."""
    return bisect_right(starts, block) - 1
