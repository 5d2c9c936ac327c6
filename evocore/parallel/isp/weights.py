"""Makes a model compute with weights of which each rank keeps a flat shard.

Shapes: T tokens of this rank, D inputs, F outputs of a weight.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from evocore.config.schema_parallel import Weight
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear
from evocore.nn.projecting import Projecting
from evocore.parallel.groups import Group
from evocore.parallel.isp import ulysses
from evocore.parallel.isp.edges import GatheredEmbedding, GatheredHead, whole_weight
from evocore.parallel.isp.gathering import Buffers
from evocore.parallel.isp.plan import make_plan
from evocore.parallel.isp.projection import project
from evocore.parallel.isp.reduction import Reduction
from evocore.parallel.isp.schedule import Schedule
from evocore.parallel.pipeline.deferral import WeightGradients


class WeightParallel:
    """Gathers the weights of a model's calls and reduces their gradients.

    Replaces ``fan_out`` and ``fan_in`` of the model's ``Projecting`` layers, and its embedding and head by layers
    with the same parameters. The parameters may still be replaced later, e.g. when the model leaves the meta device.

    All ranks of the group make the same calls in the same order, and each backward is followed by ``finish``.

    Args:
        model: the weight of every ``Linear`` and ``Embedding`` is a flat shard, as long on each rank.
        group: the ranks that share the weights, in the order of their shards.
        shapes: of the whole parameters, by name.
        recomputed, starts: as of ``evocore.parallel.isp.plan.make_plan``; what is wrong there costs overlap only.
        keeps_buffers: see ``Backend.reuses_gather_buffers``.
        gradients: decides when those of linear layers are computed; in backward if left out.

    Attributes:
        deliver: takes the gradient of each shard, ``(parameter, gradient)``, once per backward and in a fixed order;
            set before the first backward.
        before_read: called with each shard before it is sent, which may be long before its layer runs: for an
            optimizer whose new parameters are still on their way when forward begins. Does nothing unless it is set.

    Raises:
        ValueError: if the model has a linear layer that no ``Projecting`` layer uses.
    """

    deliver: Callable[[nn.Parameter, Tensor], None]
    before_read: Callable[[nn.Parameter], None]

    def __init__(
        self,
        model: nn.Module,
        group: Group,
        settings: Weight,
        shapes: Mapping[str, Sequence[int]],
        *,
        recomputed: Collection[int] = (),
        starts: Sequence[int] = (0,),
        keeps_buffers: bool = False,
        gradients: WeightGradients | None = None,
    ) -> None:
        self.before_read = lambda parameter: None
        edges = _replace_edges(model)
        self._calls = {call.layers[0]: call for call in make_plan(model, settings, recomputed, starts)}
        names = {parameter: name for name, parameter in model.named_parameters()}
        reduction = Reduction(
            group,
            lambda parameter, gradient: self.deliver(parameter, gradient),
            overlap=settings.overlap,
            early_release=settings.early_reduce_scatter_release,
        )
        self._schedule = Schedule(
            group,
            {
                module: tuple(shapes[names[module.weight]])
                for module in model.modules()
                if isinstance(module, Linear | Embedding)
            },
            reduction,
            Buffers(keeps_buffers),
            lambda parameter: self.before_read(parameter),
            overlap=settings.overlap,
            fused=settings.layer_fuse_isp_comm,
            gradients=gradients,
        )
        for edge in edges:
            edge.whole = partial(whole_weight, call=self._calls[edge], schedule=self._schedule)
        for module in model.modules():
            if isinstance(module, Projecting):
                module.fan_out, module.fan_in = self._fan_out, self._fan_in
        model.register_forward_pre_hook(self._before_forward)

    def wrap_attention(self, function: Callable[..., Tensor], sequence: Group) -> Callable[..., Tensor]:
        """``ulysses.wrap_attention``, which also is a moment at which gathering may start."""
        spread = ulysses.wrap_attention(function, sequence)

        def attention(*tensors: Tensor, **options: Any) -> Tensor:
            self._schedule.at_attention()
            return spread(*tensors, **options)

        return attention

    def finish(self) -> None:
        """Wait for the gradients that backward has left under way, and deliver them. A second call does nothing."""
        self._schedule.finish()

    def _before_forward(self, model: nn.Module, args: Any) -> None:
        self._schedule.begin_forward()

    def _fan_out(self, x_TD: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
        call = self._calls[layers[0]]
        assert tuple(layers) == call.layers, "fan_out is given all layers that read its input, in module order"
        return project(x_TD, layers, call, self._schedule)

    def _fan_in(self, x_TF: Tensor, layer: Linear) -> Tensor:
        (y_TD,) = project(x_TF, [layer], self._calls[layer], self._schedule)
        return y_TD


def _replace_edges(model: nn.Module) -> list[GatheredEmbedding | GatheredHead]:
    edges: list[GatheredEmbedding | GatheredHead] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Embedding):
                edges.append(GatheredEmbedding.of(child))
            elif isinstance(child, Head):
                edges.append(GatheredHead.of(child))
            else:
                continue
            setattr(parent, name, edges[-1])
    return edges
