"""Weights on their way from the shards of all ranks to whole matrices.

Sizes: W ranks of the weight group, n elements of a shard.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from evocore.ops.collectives import FINISHED, Handle
from evocore.parallel.groups import Group
from evocore.parallel.isp.plan import Layer, Unit

Shapes = Mapping[Layer, tuple[int, ...]]
"""Of the whole weights."""


class Buffers:
    """Memory for gathered weights.

    Args:
        kept: what was given back is used again for a weight of the same size, for devices whose allocator is not good
            at that. Otherwise all of it goes back to the allocator.
    """

    def __init__(self, kept: bool) -> None:
        self._kept = kept
        self._free: dict[tuple[int, torch.dtype], list[Tensor]] = {}

    def take(self, elements: int, like: Tensor) -> Tensor:
        """An uninitialised flat tensor."""
        free = self._free.get((elements, like.dtype))
        return free.pop() if free else like.new_empty(elements)

    def give_back(self, buffer: Tensor) -> None:
        """Nothing that is queued from now on reads it."""
        if self._kept:
            self._free.setdefault((buffer.numel(), buffer.dtype), []).append(buffer)


class Gathering:
    """The weights of one unit, from the start of their collectives until the last of them was released.

    Args:
        fused: one collective for all of them; each weight is then copied out of the common buffer when it is used.
    """

    def __init__(self, unit: Unit, shapes: Shapes, group: Group, buffers: Buffers, *, fused: bool) -> None:
        self._shapes = shapes
        together = [unit.layers] if fused and group.size > 1 else [(layer,) for layer in unit.layers]
        exchanges = [_Exchange(layers, group, buffers) for layers in together]
        self._exchanges = {layer: exchange for exchange in exchanges for layer in exchange.layers}

    @property
    def released(self) -> bool:
        """Whether nothing of it is left."""
        return not self._exchanges

    def whole(self, layer: Layer) -> Tensor:
        """The weight in its shape, contiguous, readable by what is queued from now on; not beyond its release."""
        return self._exchanges[layer].whole(layer, self._shapes[layer])

    def release(self, layer: Layer, *, reuse: bool = True) -> None:
        """What is queued from now on reads this weight no more; without ``reuse`` somebody keeps it."""
        exchange = self._exchanges.pop(layer)
        if exchange not in self._exchanges.values():
            exchange.end(reuse)

    def discard(self) -> None:
        """Release what is left."""
        for layer in list(self._exchanges):
            self.release(layer)


class _Exchange:
    """One collective with the shards of some layers one behind the other: ``[n] -> [W, n]``."""

    def __init__(self, layers: Sequence[Layer], group: Group, buffers: Buffers) -> None:
        self.layers, self._group, self._buffers = layers, group, buffers
        self._handle: Handle
        shards = [layer.weight.detach() for layer in layers]
        assert len({(shard.dtype, shard.device) for shard in shards}) == 1, "weights of one block differ in dtype"
        self._lengths = [shard.numel() for shard in shards]
        self._shard = shards[0] if len(shards) == 1 else torch.cat(shards)  # kept until it was sent
        if group.size == 1:
            self._whole, self._handle = self._shard, FINISHED
        else:
            self._whole = buffers.take(group.size * self._shard.numel(), self._shard)
            self._handle = group.all_gather(self._whole, self._shard, asynchronous=True)

    def whole(self, layer: Layer, shape: tuple[int, ...]) -> Tensor:
        self._handle.wait()
        by_rank = self._whole.view(self._group.size, -1).split(self._lengths, dim=1)
        part: Tensor = by_rank[self.layers.index(layer)]
        return part.reshape(-1)[: prod(shape)].view(shape)  # behind it is padding

    def end(self, reuse: bool) -> None:
        self._handle.wait()  # where it was started for nothing
        if reuse and self._group.size > 1:
            self._buffers.give_back(self._whole)
