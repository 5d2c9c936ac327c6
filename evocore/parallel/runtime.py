"""One rank at work: its data, its tokens, its parameters, and whom it exchanges what with.

What trains a model asks here and knows no mode of parallelism.

Shapes: T tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evocore.backend import Backend
from evocore.config.schema_parallel import Weight
from evocore.nn.experts import RoutedExperts
from evocore.nn.projecting import Projecting
from evocore.nn.router import Router
from evocore.ops.attention import AttentionBlock, AttentionRequest
from evocore.ops.collectives import Collectives
from evocore.ops.kernel import Request
from evocore.parallel.activations import ActivationMemory
from evocore.parallel.context import RingAttention, Rings
from evocore.parallel.expert import ExpertParallel, SharedTokens
from evocore.parallel.expert_weights import ExpertWeights
from evocore.parallel.groups import Groups
from evocore.parallel.isp import WeightParallel
from evocore.parallel.layout import Layout
from evocore.parallel.pipeline.deferral import DeferredProjections, WeightGradients
from evocore.parallel.pipeline.engine import Pipeline
from evocore.parallel.placement import Placement
from evocore.parallel.sharding import Sharing
from evocore.parallel.sizes import Sizes
from evocore.parallel.tensor import TensorParallel
from evocore.parallel.topology import Topology
from evocore.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelHead
from evocore.parallel.zero import Shards, Zero

if TYPE_CHECKING:
    from evocore.parallel.fsdp import FullySharded

_SHARDS = {
    "data": ("zero", "zero_replica"),
    "weight_data": ("zero", "zero_replica"),
    "stage": ("zero", "stage_replica"),
    "expert_data": ("expert_zero", "expert_zero_replica"),
}
"""``Sharing.reduce`` -> the groups of ``Shards``."""

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
        counts_samples: whether its micro-batches count in such sums, of the ranks that are given the same.
        shards: who reduces gradients with whom, by ``Sharing.reduce``.
        pipeline: in which order it computes what, and exchanges with other stages.
        fully_sharded: the parameters that are gathered for each use by PyTorch, once the model is connected; or None.
    """

    def __init__(
        self, layout: Layout, groups: Groups, collectives: Collectives, sharings: Mapping[str, Sharing]
    ) -> None:
        sizes = layout.topology.sizes
        self.rank, self.world = layout.rank, sizes.world
        data, tensor = layout.part("data"), layout.part("tensor")
        self.data_rank, self.data_size = data.index, data.parts
        self.tensor_part = tensor
        self.layout, self.sharings = layout, sharings
        self._groups, self._collectives = groups, collectives
        if layout.chunks:  # stages need not need the same groups, but all ranks make all of them
            for name in layout.topology.names():
                groups.get(name)
        self._world = groups.get("world")
        self._gradients = WeightGradients() if layout.schedule.splits_backward else None
        self.pipeline = Pipeline(
            layout.schedule,
            groups.get("pipeline"),
            groups.get("pipeline_down"),
            self._gradients,
            self.finish_backward,
        )
        self.counts_tokens = self.pipeline.is_last and (layout.mode == "isp" or tensor.index == 0)
        self.counts_samples = layout.part("model").index == 0
        self._weights: WeightParallel | None = None
        self._expert_weights: ExpertWeights | None = None
        self._ring: RingAttention | None = None
        self._activations: ActivationMemory | None = None
        self.fully_sharded: FullySharded | None = None
        kinds = sorted({sharing.reduce for sharing in sharings.values()})
        self.shards = {kind: Shards(*(groups.get(name) for name in _SHARDS[kind])) for kind in kinds}

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
        expert_weight: Weight | None = None,
        communicate: torch.dtype | None = None,
        keeps_buffers: bool = False,
        activations: ActivationMemory | None = None,
    ) -> None:
        """Give a model that was cut to the layout its collectives.

        Args:
            weight: settings of weight parallelism.
            device: on which the model is going to be.
            expert_weight: settings of weight parallelism of experts; the defaults if left out.
            communicate: see ``ZeroOptions``.
            keeps_buffers: see ``Backend.reuses_gather_buffers``.
            activations: runs the model's blocks; what they keep is as the model has it if left out.
        """
        self._activations = activations
        if activations is not None:
            activations.connect(model)
        if self.layout.mode == "isp":
            self._weights = WeightParallel(
                model,
                self._groups.get("weight"),
                weight,
                {name: sharing.placement.shape for name, sharing in self.sharings.items()},
                recomputed=model.recomputed_blocks(),  # type: ignore[operator]
                starts=self.layout.chunk_starts(),
                keeps_buffers=keeps_buffers,
                gradients=self._gradients,
            )
            if self.layout.part("context").parts > 1:
                self._ring = RingAttention(Rings.of(self._groups))
        elif self.tensor_part.parts > 1:
            group = self._groups.get("tensor")
            strategy = TensorParallel(self.layout.mode, group, self._groups.get("kv"), self._gradients)
            for module in model.modules():
                if isinstance(module, Projecting):
                    module.fan_out, module.fan_in = strategy.fan_out, strategy.fan_in
                    module.share = strategy.share
                elif isinstance(module, VocabularyParallelEmbedding | VocabularyParallelHead):
                    module.connect(group)
        elif self._gradients is not None:
            deferred = DeferredProjections(self._gradients)
            for module in model.modules():
                if isinstance(module, Projecting):
                    module.fan_out, module.fan_in = deferred.fan_out, deferred.fan_in
        self.pipeline.open_channels(device)
        self._connect_experts(model, expert_weight or Weight())
        mine = {name: sharing for name, sharing in self.sharings.items() if sharing.fully_sharded}
        if mine:
            from evocore.parallel.fsdp import FullySharded  # seconds of imports, for those who use it

            zero, replicas = self._groups.get("zero"), self._groups.get("zero_replica")
            starts = self.layout.chunk_starts()
            self.fully_sharded = FullySharded(model, mine, zero, replicas, device, communicate, starts)

    def _connect_experts(self, model: nn.Module, settings: Weight) -> None:
        layers = [module for module in model.modules() if isinstance(module, RoutedExperts)]
        if not layers:
            return
        mode, tensor = self.layout.mode, self._groups.get("tensor")
        divided = self.layout.part("expert_tensor").parts > 1
        dispatch = ExpertParallel(mode, tensor, self._groups.get("expert"), divided=divided)
        for layer in layers:
            layer.dispatch = dispatch
        if self._splits_tokens:
            for module in model.modules():
                if isinstance(module, Router):
                    module.tokens = SharedTokens(tensor, self._tokens_by_rank)
        if self.layout.part("expert_weight").parts > 1:
            group, starts = self._groups.get("expert_weight"), self.layout.chunk_starts()
            self._expert_weights = ExpertWeights(model, group, settings, starts)

    @property
    def _splits_tokens(self) -> bool:
        """Whether the ranks of a tensor group have different tokens between layers."""
        return self.layout.mode != "mtp" and self.tensor_part.parts > 1

    def _tokens_by_rank(self, total: int) -> list[list[tuple[int, int]]]:
        """Which tokens of a micro-batch each rank of the tensor group has between layers."""
        if self.layout.mode != "isp":
            length = total // self.tensor_part.parts
            return [[(start, start + length)] for start in range(0, total, length)]
        ranks = self._groups.get("tensor").ranks
        return [Layout(self.layout.topology, rank).own_tokens(total) for rank in ranks]

    def wrap(self, function: Callable[..., Any], request: Request, layer: str) -> Callable[..., Any]:
        """What a layer calls in place of a kernel's own function."""
        if not isinstance(request, AttentionRequest):
            return function
        if self._ring is not None:
            assert isinstance(function, AttentionBlock), request  # what layers ask for where the context is divided
            function = self._ring.attention(function)
        if self._activations is not None:
            function = self._activations.wrap_attention(function)
        if self._weights is None:
            return function
        return self._weights.wrap_attention(function, self._groups.get("sequence" if self._ring is None else "head"))

    def held(self, parameter: nn.Parameter) -> Tensor:
        """The memory of this rank that is behind a parameter."""
        return parameter if self.fully_sharded is None else self.fully_sharded.held(parameter)

    # --- a step -----------------------------------------------------------------------------------------------------

    def own_tokens(self, x_T: Tensor) -> Tensor:
        """Of something that a micro-batch has for each token, what this rank computes with."""
        runs = [x_T[start:stop] for start, stop in self.layout.own_tokens(len(x_T))]
        return runs[0] if len(runs) == 1 else torch.cat(runs)

    def tokens_between_layers(self, own: int) -> int:
        """How many tokens the residual stream has on this rank, if it computes with so many."""
        return own // self.tensor_part.parts if self.layout.mode in ("msp", "fsp") else own

    def finish_backward(self) -> None:
        """Call after each backward pass: wait for what it has left under way."""
        for weights in (self._weights, self._expert_weights):
            if weights is not None:
                weights.finish()
        if self.fully_sharded is not None:
            self.fully_sharded.finish_backward()

    def join(self, zero: Zero) -> None:
        """Let the weights that are gathered for each use exchange gradients and values with the optimizer's."""
        for weights in (self._weights, self._expert_weights):
            if weights is not None:
                weights.deliver, weights.before_read = zero.deliver, zero.wait_parameter
        if self._gradients is not None:
            self._gradients.deliver = self._deliver(zero)

    def _deliver(self, zero: Zero) -> Callable[[nn.Parameter, Tensor], None]:
        """Who takes the gradient of a weight that a schedule has put off."""
        if self.fully_sharded is None:
            return zero.deliver
        rows = self.fully_sharded.deferred

        def deliver(weight: nn.Parameter, gradient: Tensor) -> None:
            (rows if rows.knows(weight) else zero).deliver(weight, gradient)

        return deliver

    # --- all ranks --------------------------------------------------------------------------------------------------

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum in place over all ranks."""
        self._world.all_reduce(tensor)
        return tensor

    def sum_of_tokens(self, tensor: Tensor) -> Tensor:
        """Sum over all ranks what each has counted of the tokens that it computes; each token counts once."""
        return self.sum(tensor if self.counts_tokens else torch.zeros_like(tensor))

    def sum_of_routed(self, tensor: Tensor) -> Tensor:
        """Sum in place over all ranks what routers have counted of the tokens that they saw; each counts once."""
        if not self._splits_tokens and self.tensor_part.index > 0:
            tensor.zero_()
        return self.sum(tensor)

    def collect(self, text: str) -> list[str]:
        """The texts of all ranks in rank order; never in a step that goes well."""
        return self._collectives.agree(text) if self.world > 1 else [text]
