"""Gradients of whole weights on their way to the shards that they belong to.

Sizes: W ranks of the weight group, n elements of a shard.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from torch import Tensor, nn

from evocore.ops.collectives import Handle
from evocore.parallel.groups import Group

Deliver = Callable[[nn.Parameter, Tensor], None]
"""Takes one micro-batch's gradient of a parameter: ``(parameter, gradient)``, of one shape."""


class Reduction:
    """Reduce-scatters gradients over the weight group and delivers each rank its part.

    Args:
        overlap: exchange while backward goes on.
        early_release: what one call has left under way is waited for, delivered and freed by the next one. Otherwise
            all whole gradients are kept until the end of the backward pass.
        deliver: called once per weight, in the same order on all ranks.
    """

    def __init__(self, group: Group, deliver: Deliver, *, overlap: bool, early_release: bool) -> None:
        self._group, self._deliver, self._overlap, self._early_release = group, deliver, overlap, early_release
        self._under_way: list[_UnderWay] = []

    @property
    def finished(self) -> bool:
        """Whether everything was delivered."""
        return not self._under_way

    def empty(self, shard: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A flat gradient ``[W * n]`` whose padding is zero, and the part to write to, in the weight's shape."""
        flat = shard.new_empty(self._group.size * shard.numel())
        flat[prod(shape) :] = 0
        return flat, flat[: prod(shape)].view(shape)

    def start(self, gradients: list[tuple[nn.Parameter, Tensor]]) -> None:
        """Reduce the flat gradients of one call's weights."""
        earlier = len(self._under_way)
        for parameter, flat in gradients:
            if self._group.size == 1:
                self._deliver(parameter, flat)
                continue
            part = flat.new_empty(parameter.shape)
            handle = self._group.reduce_scatter(part, flat, asynchronous=self._overlap)
            self._under_way.append(_UnderWay(parameter, part, flat, handle))
        if not self._overlap:
            self.finish()
        elif self._early_release:
            self._deliver_first(earlier)

    def finish(self) -> None:
        """Deliver what is still under way."""
        self._deliver_first(len(self._under_way))

    def _deliver_first(self, count: int) -> None:
        for _ in range(count):
            done = self._under_way.pop(0)
            done.handle.wait()
            self._deliver(done.parameter, done.part)


class _UnderWay(NamedTuple):
    """``whole`` is only there to be kept until it was sent."""

    parameter: nn.Parameter
    part: Tensor
    whole: Tensor
    handle: Handle
