"""The seams at which a layer's matrix products meet the other ranks.

A transformer layer brings its input to some weights (query, key and value; gate and up), computes with what it gets,
and brings the result through one more weight. A strategy that splits weights, tokens or heads over ranks replaces how
these two things are done, and how many heads or features the layer holds; the layer itself stays as it is written.
What all its heads use without a weight in between goes through a third one.

Shapes: T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor

from evocore.nn.binding import UsesOps
from evocore.nn.layers import Linear
from evocore.nn.roles import Role

FanOut = Callable[[Tensor, Sequence[Linear]], list[Tensor]]
"""``(x_TD, layers) -> [layer(x_TD), ...]``."""
FanIn = Callable[[Tensor, Linear], Tensor]
"""``(x_TF, layer) -> layer(x_TF)``."""
Share = Callable[[Tensor], Tensor]
"""``x_TF -> x_TF``."""
TOGETHER = frozenset({Role.QKV, Role.GATE, Role.UP, Role.GATE_UP})
"""Weights that read the same input, and so are used by one call."""


def apply_each(x_TD: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
    """What ``fan_out`` means."""
    return [layer(x_TD) for layer in layers]


def apply_one(x_TF: Tensor, layer: Linear) -> Tensor:
    """What ``fan_in`` means."""
    y_TD: Tensor = layer(x_TF)
    return y_TD


def as_it_is(x_TF: Tensor) -> Tensor:
    """What ``share`` means."""
    return x_TF


class Projecting(UsesOps):
    """A layer that reads its input through ``fan_out`` and writes its result through ``fan_in``.

    Attributes:
        shared: features of a token that go through ``share``: they are used beside outputs of ``fan_out``, by all
            heads alike.

    Class attributes:
        divided: names of the integer attributes that count what the outputs of ``fan_out`` hold, heads or features.
            Where a rank holds a part of the weights, they count its part.
    """

    divided: ClassVar[tuple[str, ...]] = ()
    fan_out: FanOut
    fan_in: FanIn
    share: Share
    shared: int = 0

    def __init__(self) -> None:
        super().__init__()
        self.fan_out, self.fan_in, self.share = apply_each, apply_one, as_it_is

    def used_together(self) -> list[tuple[Linear, ...]]:
        """Its linear layers in the order in which forward uses them, those of one call of a seam together."""
        runs: list[tuple[Linear, ...]] = []
        for layer in self.children():
            if not isinstance(layer, Linear):
                continue
            if runs and layer.role in TOGETHER and runs[-1][-1].role in TOGETHER:
                runs[-1] += (layer,)
            else:
                runs.append((layer,))
        return runs
