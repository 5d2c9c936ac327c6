"""Embedding and head, whose weight is gathered as a whole for one use.

Neither gathers again in backward: the gradient of an embedding does not depend on its weight, and that of a head is
computed right after its loss, if not with it.

Shapes: T tokens of this rank, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evocore.nn.head import Head
from evocore.nn.layers import Embedding
from evocore.ops.cross_entropy import TokenLoss
from evocore.parallel.isp.plan import Call
from evocore.parallel.isp.schedule import Schedule

M = TypeVar("M", bound=nn.Module)


def whole_weight(shard: Tensor, call: Call, schedule: Schedule) -> Tensor:
    """The weight of a call with one layer; its gradient is reduced to the ranks' shards."""
    weight: Tensor = _Whole.apply(shard, call, schedule)
    return weight


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, call: Call, schedule: Schedule) -> Tensor:
        ctx.call, ctx.schedule = call, schedule
        return schedule.forward_kept(call)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_VD: Tensor) -> tuple[None, None, None]:
        call, schedule = ctx.call, ctx.schedule
        schedule.begin_backward(call, needs_weights=False)
        layer = call.layers[0]
        flat, view_VD = schedule.reduction.empty(layer.weight, schedule.shapes[layer])
        view_VD.copy_(grad_VD)
        schedule.reduction.start([(layer.weight, flat)])
        return None, None, None


class GatheredEmbedding(Embedding):
    """An embedding that keeps a flat shard of its weight.

    Attributes:
        whole: called with the shard, gives ``[V, D]``.
    """

    whole: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, embedding: Embedding) -> Self:
        """One that takes the place of another, with its parameters."""
        return _remade(cls, embedding)

    def forward(self, tokens_T: Tensor) -> Tensor:
        return F.embedding(tokens_T, self.whole(self.weight))


class GatheredHead(Head):
    """A head that keeps a flat shard of its weight.

    Attributes:
        whole: called with the shard, gives ``[V, D]``.
    """

    whole: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, head: Head) -> Self:
        """One that takes the place of another, with its parameters and kernels."""
        return _remade(cls, head)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        return self.scores(hidden_TD, self.whole(self.weight))

    def loss(
        self,
        hidden_TD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        weight_VD = self.whole(self.weight)
        return self.token_loss(
            hidden_TD, weight_VD, labels_T, weights_T, label_smoothing=label_smoothing, z_loss=z_loss
        )


def _remade(kind: type[M], module: nn.Module) -> M:
    """Everything that a module has, in a subclass of its class."""
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    return made
