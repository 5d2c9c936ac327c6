"""Weight parallelism of experts in isp: a rank keeps a flat shard of its experts' weights and gathers them for use.

The kernels that multiply with a gathered weight keep it for backward, like any input. Its memory is taken from under
them once the product is done, and filled again before backward needs it: a weight has one buffer, which is empty in
between, so that however many passes are under way find the same values in it.

Sizes: W ranks of the group, n elements of a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evocore.config.schema_parallel import Weight
from evocore.nn.experts import ExpertLinear
from evocore.ops.collectives import Handle
from evocore.ops.grouped_linear import Groups
from evocore.parallel.blocks import blocks_of, part_of
from evocore.parallel.groups import Group
from evocore.parallel.isp.reduction import Reduction


class ExpertWeights:
    """Gathers the experts' weights and reduces their gradients.

    All ranks of the group run the same layers in the same order, and each backward is followed by ``finish``. With
    ``settings.overlap``, the weights that come next are gathered while a layer computes, forwards and backwards, and
    gradients are reduced while backward goes on.

    Args:
        model: its ``ExpertLinear`` layers keep flat shards; they are replaced by layers with the same parameters.
        group: the ranks that share the weights.
        starts: blocks with which parts of the model begin that are run each by itself.

    Attributes:
        deliver, before_read: as of ``evocore.parallel.isp.WeightParallel``.
    """

    deliver: Callable[[nn.Parameter, Tensor], None]
    before_read: Callable[[nn.Parameter], None]

    def __init__(self, model: nn.Module, group: Group, settings: Weight, starts: Sequence[int] = (0,)) -> None:
        self.group, self.before_read, self._overlap = group, lambda parameter: None, settings.overlap
        self.reduction = Reduction(
            group,
            lambda parameter, gradient: self.deliver(parameter, gradient),
            overlap=settings.overlap,
            early_release=settings.early_reduce_scatter_release,
        )
        self._layers = _replace(model)
        blocks = enumerate(blocks_of(model))
        parts = {module: part_of(number, starts) for number, block in blocks for module in block.modules()}
        self._parts = [parts.get(layer, 0) for layer in self._layers]
        for place, layer in enumerate(self._layers):
            layer.weights, layer.place, layer.buffer = self, place, None
        model.register_forward_pre_hook(self._before_forward)

    def finish(self) -> None:
        """Deliver the gradients that are under way, and drop weights that nobody has used."""
        self.reduction.finish()
        self._discard()

    def start(self, layer: GatheredExpertLinear, step: int) -> None:
        """Gather a layer's weight and, beside compute, that of the one ``step`` places further in the same part."""
        layer.start()
        place = layer.place + step
        if self._overlap and 0 <= place < len(self._layers) and self._parts[place] == self._parts[layer.place]:
            self._layers[place].start()

    def _before_forward(self, model: nn.Module, args: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            self._discard()  # what a pass that was not completed has left may be out of date

    def _discard(self) -> None:
        for layer in self._layers:
            layer.release()


class GatheredExpertLinear(ExpertLinear):
    """An ``ExpertLinear`` that keeps a flat shard of its weight.

    Attributes:
        weights: who knows what comes next.
        place: among all such layers, in the order of forward.
        buffer: ``[W n]``, without memory unless ``start`` was called; None until the first time.
    """

    weights: ExpertWeights
    place: int
    buffer: Tensor | None
    arriving: Handle | None = None

    @classmethod
    def of(cls, layer: ExpertLinear) -> Self:
        """One that takes the place of another, with its parameters and kernels."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        return made

    def forward(self, rows_RD: Tensor, groups: Groups) -> Tensor:
        recomputes = torch._C._current_graph_task_id() != -1
        self.weights.start(self, -1 if recomputes else 1)
        whole = _Whole.apply(self.weight, self)
        y_RF = self.grouped_linear(rows_RD, whole.flatten(1, -2), groups)
        if not recomputes:  # then backward is next
            self.release()
        return _GatherForBackward.apply(y_RF, self) if y_RF.requires_grad else y_RF

    def start(self) -> None:
        """Begin to gather, unless that was done."""
        if self.arriving is not None:
            return
        shard = self.weight.detach()
        self.weights.before_read(self.weight)
        elements = self.weights.group.size * shard.numel()
        if self.buffer is None:
            self.buffer = shard.new_empty(elements)
        else:
            self.buffer.untyped_storage().resize_(elements * shard.element_size())
        self.arriving = self.weights.group.all_gather(self.buffer, shard, asynchronous=True)

    def whole(self) -> Tensor:
        """The weight, which is there until ``release``."""
        assert self.arriving is not None and self.buffer is not None
        self.arriving.wait()
        # Other than a view, ``data`` has a version of its own: autograd is not told that memory comes and goes.
        return self.buffer.data[: prod(self.shape)].view(self.shape)

    def release(self) -> None:
        """Give the memory back."""
        if self.arriving is not None and self.buffer is not None:
            self.arriving.wait()
            self.buffer.untyped_storage().resize_(0)
            self.arriving = None


class _Whole(torch.autograd.Function):
    """Shard -> whole weight; backward sends the gradient to the shards."""

    @staticmethod
    def forward(ctx: Any, shard: Tensor, layer: GatheredExpertLinear) -> Tensor:
        ctx.layer = layer
        return layer.whole()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        layer = ctx.layer
        layer.release()
        reduction = layer.weights.reduction
        flat, view = reduction.empty(layer.weight, layer.shape)
        view.copy_(grad)
        reduction.start([(layer.weight, flat)])
        return None, None


class _GatherForBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RF: Tensor, layer: GatheredExpertLinear) -> Tensor:
        ctx.layer = layer
        return y_RF.view_as(y_RF)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor, None]:
        ctx.layer.weights.start(ctx.layer, -1)
        ctx.layer.whole()
        return grad_RF, None


def _replace(model: nn.Module) -> list[GatheredExpertLinear]:
    found = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ExpertLinear):
                found.append(GatheredExpertLinear.of(child))
                setattr(parent, name, found[-1])
    return found
