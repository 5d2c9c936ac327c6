"""One rank at work: its data, its tokens, its parameters, and whom it exchanges what with.

What trains a model asks here and knows no mode of parallelism.

Shapes: T tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from evocore.backend import Backend
from evocore.config.schema_parallel import Weight
from evocore.nn.projecting import Projecting
from evocore.ops.collectives import Collectives
from evocore.ops.kernel import Request
from evocore.parallel.fsdp import FullySharded
from evocore.parallel.groups import Groups
from evocore.parallel.isp import WeightParallel
from evocore.parallel.layout import Layout
from evocore.parallel.placement import Placement
from evocore.parallel.sharding import Sharing
from evocore.parallel.sizes import Sizes
from evocore.parallel.tensor import TensorParallel
from evocore.parallel.topology import Topology
from evocore.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelHead
from evocore.parallel.zero import Shards, Zero

Wrap = Callable[[Callable[..., Any], Request, str], Callable[..., Any]]


class Runtime:
    """Connects a model that was cut to its layout.

    Args:
        layout: of this rank.
        groups: of this rank; every rank makes its runtime at the same time, as process groups are made here.
        collectives: for what concerns all ranks.
        sharings: of the model's parameters, by name.

    Attributes:
        rank, world: this process and how many there are.
        data_rank, data_size: which part of the global batch it works on, of how many.
        counts_tokens: whether the tokens that this rank computes count in sums over all ranks, as they do on one rank
            of those that compute the same.
        shards: who reduces gradients with whom, by ``Sharing.reduce``.
        fully_sharded: the parameters that are gathered for each use by PyTorch, once the model is connected; or None.
    """

    def __init__(
        self, layout: Layout, groups: Groups, collectives: Collectives, sharings: Mapping[str, Sharing]
    ) -> None:
        sizes = layout.topology.sizes
        self.rank, self.world = layout.rank, sizes.world
        data, tensor = layout.part("data"), layout.part("tensor")
        self.data_rank, self.data_size = data.index, data.parts
        self._splits_tokens = layout.mode == "isp" and tensor.parts > 1
        self.counts_tokens = layout.mode == "isp" or tensor.index == 0
        self.tensor_part = tensor
        self.layout, self.sharings = layout, sharings
        self._groups, self._collectives = groups, collectives
        self._world = groups.get("world")
        self._weights: WeightParallel | None = None
        self.fully_sharded: FullySharded | None = None
        replicas = {"data": "zero_replica", "weight_data": "zero_replica", "stage": "stage_replica"}
        kinds = sorted({sharing.reduce for sharing in sharings.values()})
        self.shards = {kind: Shards(groups.get("zero"), groups.get(replicas[kind])) for kind in kinds}

    @classmethod
    def alone(cls, model: nn.Module) -> Runtime:
        """Of a process that has everything."""
        collectives = Collectives()
        layout = Layout(Topology(Sizes(world=1)))
        sharings = {
            name: Sharing(Placement.whole(parameter.shape), "data") for name, parameter in model.named_parameters()
        }
        return cls(layout, Groups(layout.topology, 0, Backend(), collectives), collectives, sharings)

    # --- the model --------------------------------------------------------------------------------------------------

    def connect(
        self,
        model: nn.Module,
        weight: Weight,
        device: torch.device,
        *,
        communicate: torch.dtype | None = None,
        keeps_buffers: bool = False,
    ) -> None:
        """Give a model that was cut to the layout its collectives.

        Args:
            weight: settings of weight parallelism.
            device: on which the model is going to be.
            communicate: see ``ZeroOptions``.
            keeps_buffers: see ``Backend.reuses_gather_buffers``.
        """
        if self.layout.mode == "isp":
            self._weights = WeightParallel(
                model,
                self._groups.get("weight"),
                weight,
                {name: sharing.placement.shape for name, sharing in self.sharings.items()},
                recomputed_blocks=model.recomputed_attention_layers(),  # type: ignore[operator]
                keeps_buffers=keeps_buffers,
            )
        elif self.tensor_part.parts > 1:
            group = self._groups.get("tensor")
            strategy = TensorParallel(self.layout.mode, group, self._groups.get("kv"))
            for module in model.modules():
                if isinstance(module, Projecting):
                    module.fan_out, module.fan_in = strategy.fan_out, strategy.fan_in
                elif isinstance(module, VocabularyParallelEmbedding | VocabularyParallelHead):
                    module.connect(group)
        mine = {name: sharing for name, sharing in self.sharings.items() if sharing.fully_sharded}
        if mine:
            zero, replicas = self._groups.get("zero"), self._groups.get("zero_replica")
            self.fully_sharded = FullySharded(model, mine, zero, replicas, device, communicate)

    def wrap(self, function: Callable[..., Any], request: Request, layer: str) -> Callable[..., Any]:
        """What a layer calls in place of a kernel's own function."""
        if self._weights is not None and request.op == "attention":
            return self._weights.wrap_attention(function, self._groups.get("sequence"))
        return function

    def held(self, parameter: nn.Parameter) -> Tensor:
        """The memory of this rank that is behind a parameter."""
        return parameter if self.fully_sharded is None else self.fully_sharded.held(parameter)

    # --- a step -----------------------------------------------------------------------------------------------------

    def own_tokens(self, x_T: Tensor) -> Tensor:
        """Of something that a micro-batch has for each token, what this rank computes with."""
        if not self._splits_tokens:
            return x_T
        length = len(x_T) // self.tensor_part.parts
        return x_T[self.tensor_part.index * length :][:length]

    def finish_backward(self) -> None:
        """Call after each backward pass: wait for what it has left under way."""
        if self._weights is not None:
            self._weights.finish()

    def join(self, zero: Zero) -> None:
        """Let the weights that are gathered for each use exchange gradients and values with the optimizer's."""
        if self._weights is not None:
            self._weights.deliver, self._weights.before_read = zero.deliver, zero.wait_parameter

    # --- all ranks --------------------------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum in place over all ranks."""
        self._world.all_reduce(tensor)
        return tensor

    def sum_of_tokens(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks what each has counted of the tokens that it computes; each token counts once."""
        return self.sum(tensor if self.counts_tokens else torch.zeros_like(tensor))

    def collect(self, text: str) -> list[str]:
        """The texts of all ranks in rank order; never in a step that goes well."""
        return self._collectives.agree(text) if self.world > 1 else [text]
