"""Which weights are gathered together, and at which moments of a step: decided once, from roles and module order.

Without overlap a call gathers its weights when it needs them. With it, each moment names the unit whose gathering
starts then. These moments need not be right for the result to be right: what was not started ahead is gathered when
it is needed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from evocore.config.schema_parallel import Weight
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.parallel.blocks import blocks_of

Layer = Linear | Embedding

LAUNCH = {
    "wqkv": frozenset({Role.QKV}),
    "attn": frozenset({Role.QKV}),
    "wo": frozenset({Role.OUT}),
    "w1": frozenset({Role.GATE, Role.UP, Role.GATE_UP}),
}
"""``launch_allgather_before`` -> roles of the call that it means; ``attn`` is a moment later than its call."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Weights whose gathering starts at the same time."""

    layers: tuple[Layer, ...]


@dataclass(eq=False)
class Call:
    """One use of some weights: by ``fan_out``, by ``fan_in``, by an embedding or by a head.

    Attributes:
        layers: whose weights it uses.
        block: number of the block that it is in; None before and after the blocks.
        unit: which holds its weights.
        forward: the unit to start when the call is made.
        attention: the unit to start when attention is called after it.
        recomputation: the unit to start when the call is made again for activations that were dropped.
        backward: the unit to start when the call's backward begins.
    """

    layers: tuple[Layer, ...]
    block: int | None
    unit: Unit
    forward: Unit | None = None
    attention: Unit | None = None
    recomputation: Unit | None = None
    backward: Unit | None = None


def make_plan(
    model: nn.Module, settings: Weight, recomputed: Collection[int] = (), starts: Sequence[int] = (0,)
) -> list[Call]:
    """The calls of one forward pass in their order: embeddings, then blocks, then heads.

    Blocks are what the model's lists of modules hold.

    Args:
        recomputed: blocks that are computed again in backward.
        starts: blocks with which parts of the model begin that are run each by itself: none starts what is another's.

    Raises:
        ValueError: if the model has a linear layer that no ``Projecting`` layer uses.
    """
    by_block = settings.overlap and settings.forward_overlap_per == "layer"
    calls: list[Call] = []
    for layers, block in _uses(model):
        if by_block and block is not None and calls and calls[-1].block == block:
            unit = Unit(calls[-1].unit.layers + layers)
            for call in calls:
                call.unit = unit if call.block == block else call.unit
        else:
            unit = Unit(layers)
        calls.append(Call(layers, block, unit))
    if by_block:
        _overlap_blocks(calls, settings.launch_allgather_before, starts)
    elif settings.overlap:
        _overlap_calls(calls, recomputed, starts)
    if getattr(model, "further", 0):  # embedding and head are used again when what they would start is done with
        for call in calls:
            if call.block is None:
                call.forward = call.backward = None
    return calls


def _uses(model: nn.Module) -> Iterator[tuple[tuple[Layer, ...], int | None]]:
    """What each call uses, and in which block."""
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, Head)]
    yield from (((module,), None) for module in modules if isinstance(module, Embedding))
    blocks = {module: number for number, block in enumerate(blocks_of(model)) for module in block.modules()}
    seen: set[Linear] = set(heads)
    for module in modules:
        if isinstance(module, Projecting):
            for layers in module.used_together():
                yield layers, blocks.get(module, 0)
                seen.update(layers)
    stray = [module.role.value for module in modules if isinstance(module, Linear) and module not in seen]
    if stray:
        raise ValueError(
            f"linear layers of role {', '.join(stray)} have weights to gather but belong to no Projecting layer: "
            "make them its direct children and apply them by fan_out or fan_in"
        )
    yield from (((head,), None) for head in heads)


def _neighbours(calls: list[Call], starts: Sequence[int]) -> Iterator[tuple[Call, Call]]:
    """Calls that follow one another in the same part of the model."""
    for before, after in pairwise(calls):
        if before.block == after.block or after.block not in starts[1:]:
            yield before, after


def _overlap_blocks(calls: list[Call], launch_before: str, starts: Sequence[int]) -> None:
    """A block's weights are started in the block before it; in backward, in the block behind it."""
    neighbours = ((before.unit, after.unit) for before, after in _neighbours(calls, starts))
    following = {before: after for before, after in neighbours if before is not after}
    preceding = {after: before for before, after in following.items()}
    launched: set[Unit] = set()
    for number, call in enumerate(calls):
        first_layer, unit = call.layers[0], call.unit
        if call.block is None:
            call.forward = following.get(unit)
        elif unit not in launched and first_layer.role in LAUNCH[launch_before]:
            launched.add(unit)
            moment = "attention" if launch_before == "attn" else "forward"
            setattr(call, moment, following.get(unit))
        if number + 1 == len(calls) or calls[number + 1].unit is not unit:  # where backward of the unit begins
            call.backward = _needed_in_backward(preceding.get(unit))


def _overlap_calls(calls: list[Call], recomputed: Collection[int], starts: Sequence[int]) -> None:
    """A call's weights are started by the call before it; in backward, by the call behind it."""
    first_of_block: dict[int | None, Unit] = {}
    for call in calls:
        first_of_block.setdefault(call.block, call.unit)
    for before, after in _neighbours(calls, starts):
        before.forward = after.unit
        if before.block == after.block is not None:
            before.recomputation = after.unit
        if before.block in recomputed and before.block != after.block:
            after.backward = first_of_block[before.block]  # its forward comes before its backward
        else:
            after.backward = _needed_in_backward(before.unit)


def _needed_in_backward(unit: Unit | None) -> Unit | None:
    """Not an embedding: its gradient does not depend on its weight."""
    return None if unit is None or isinstance(unit.layers[0], Embedding) else unit
