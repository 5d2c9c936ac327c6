"""How often a rank's layers are used in the passes of one micro-batch: what recomputation repeats, and what it skips.

Recomputation stops at the last tensor that backward needs. Of a block that ends with a product, that is the input of
this product, which is not repeated, and neither is what is exchanged to make its result; of any other block, it is
something behind all its products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from evocore.config.schema_parallel import Weight
from evocore.nn.head import Head
from evocore.nn.layers import Embedding
from evocore.parallel.blocks import blocks_of, last_layer
from evocore.parallel.isp.plan import Call, make_plan
from evocore.parallel.layout import Layout


@dataclass(frozen=True)
class Uses:
    """What one rank's part of a model does with one micro-batch.

    Attributes:
        calls: uses of linear layers, embeddings and heads; an embedding that is here only as a head's weight is none.
        blocks: of the model.
        recomputed: numbers of those that are computed again.
        edges: how often each embedding and head is used.
    """

    calls: Sequence[Call]
    blocks: Sequence[nn.Module]
    recomputed: frozenset[int]
    edges: Mapping[nn.Module, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, layout: Layout, weight: Weight) -> Uses:
        """Of a model cut to the layout by ``Layout.shard`` and ``Layout.cut``."""
        recomputed: frozenset[int] = model.recomputed_blocks()  # type: ignore[operator]
        calls = make_plan(model, weight, recomputed, layout.chunk_starts())
        further: int = getattr(model, "further", 0)  # predictions, each of which embeds and needs the head
        embeds = (layout.schedule.stage_of(0) == layout.part("pipeline").index) + further
        edges: dict[nn.Module, int] = {
            call.layers[0]: embeds if isinstance(call.layers[0], Embedding) else 1 + further
            for call in calls
            if isinstance(call.layers[0], Embedding | Head)
        }
        calls = [call for call in calls if edges.get(call.layers[0]) != 0]
        return cls(calls, blocks_of(model), recomputed, edges)

    def forwards(self, block: int | None) -> int:
        """How often forward computes a block, or what is outside of the blocks."""
        return 1 + (block in self.recomputed)

    def results(self, block: int | None, last: nn.Module) -> int:
        """How often the result of a product is made whose last layer is ``last``."""
        forwards = self.forwards(block)
        return 1 if block is None or last is last_layer(self.blocks[block]) else forwards
