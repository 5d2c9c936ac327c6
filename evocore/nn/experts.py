"""Experts: gated MLPs of one shape in stacked weights, each of which computes the tokens that were sent to it.

Shapes: T tokens, D hidden, F width of an expert, E experts (those of this rank where ranks share them), K experts per
token, R = T * K rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from evocore.nn.binding import UsesOps
from evocore.nn.roles import Role
from evocore.ops.glu import SwiGLURequest
from evocore.ops.grouped_linear import GroupedLinearRequest, Groups
from evocore.ops.kernel import Request
from evocore.ops.moe import MoEPermuteRequest, MoEUnpermuteRequest, Permutation


class ExpertLinear(UsesOps):
    """One weight per expert, stacked: ``[E, ..., inputs]``, where what lies between are the outputs.

    Args:
        shape: of the stack.
        dtype: of weights and activations.
        init_std: standard deviation of the initial weights.
        feature: the dimension of ``shape`` that is F: what ranks divide that share an expert.

    Attributes:
        shape: of the stack that is multiplied with: where ranks share experts, of this rank's.
    """

    grouped_linear: Callable[..., Tensor]

    def __init__(self, shape: tuple[int, ...], *, dtype: torch.dtype, init_std: float, feature: int) -> None:
        super().__init__()
        self.role, self.dtype, self.init_std = Role.EXPERT, dtype, init_std
        self.shape, self.feature = shape, feature
        self.weight = nn.Parameter(torch.empty(shape, dtype=dtype))

    def requests(self) -> dict[str, Request]:
        experts, *outputs, inputs = self.shape
        return {"grouped_linear": GroupedLinearRequest(self.dtype, inputs, torch.Size(outputs).numel(), experts)}

    def forward(self, rows_RD: Tensor, groups: Groups) -> Tensor:
        """``[R, outputs]``."""
        return self.grouped_linear(rows_RD, self.weight.flatten(1, -2), groups)


class Dispatch(Protocol):
    """How tokens get to the experts and back."""

    def enter(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What this rank sends, of tokens that it has or that other ranks have as well."""
        ...

    def send(self, rows_RD: Tensor, groups: Groups) -> tuple[Tensor, Groups, Callable[[Tensor], Tensor]]:
        """Rows sorted by expert -> those of this rank's experts, and what brings their results back."""
        ...

    def leave(self, y_TD: Tensor) -> Tensor:
        """The sum of the experts' results, for the tokens with which ``enter`` was called."""
        ...


class NoDispatch:
    """All experts are here, and so are all tokens."""

    def enter(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x_TD, experts_TK, weights_TK

    def send(self, rows_RD: Tensor, groups: Groups) -> tuple[Tensor, Groups, Callable[[Tensor], Tensor]]:
        return rows_RD, groups, _as_it_is

    def leave(self, y_TD: Tensor) -> Tensor:
        return y_TD


class RoutedExperts(UsesOps):
    """SwiGLU experts: of each token, the weighted sum over its experts of ``down(silu(gate x) * up x)``.

    Args:
        experts: of the whole model's layer.
        init_std: of gate and up, and of down.

    Attributes:
        w13: ``[E, 2, F, D]``, of each expert the gate, then up.
        w2: ``[E, D, F]``.
        dispatch: how rows get to their experts.
    """

    moe_permute: Callable[..., tuple[Tensor, Permutation]]
    moe_unpermute: Callable[..., Tensor]
    swiglu: Callable[..., Tensor]
    dispatch: Dispatch

    def __init__(
        self, experts: int, top_k: int, hidden: int, width: int, *, dtype: torch.dtype, init_std: tuple[float, float]
    ) -> None:
        super().__init__()
        self.experts, self.top_k, self.hidden, self.dtype = experts, top_k, hidden, dtype
        self.w13 = ExpertLinear((experts, 2, width, hidden), dtype=dtype, init_std=init_std[0], feature=2)
        self.w2 = ExpertLinear((experts, hidden, width), dtype=dtype, init_std=init_std[1], feature=2)
        self.dispatch = NoDispatch()

    def requests(self) -> dict[str, Request]:
        sizes = self.dtype, self.hidden, self.top_k, self.experts
        return {
            "moe_permute": MoEPermuteRequest(*sizes),
            "moe_unpermute": MoEUnpermuteRequest(*sizes),
            "swiglu": SwiGLURequest(self.dtype, self.w2.shape[2]),
        }

    def forward(self, x_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor) -> Tensor:
        x_TD, experts_TK, weights_TK = self.dispatch.enter(x_TD, experts_TK, weights_TK)
        rows_RD, permutation = self.moe_permute(x_TD, experts_TK, experts=self.experts)
        mine_RD, groups, back = self.dispatch.send(rows_RD, permutation.groups)
        gate_RF, up_RF = self.w13(mine_RD, groups).chunk(2, dim=1)
        done_RD = self.w2(self.swiglu(gate_RF, up_RF), groups)
        return self.dispatch.leave(self.moe_unpermute(back(done_RD), permutation, weights_TK))

    def parameters_of_one(self) -> int:
        """Weights of one expert."""
        return 3 * self.w2.shape[1] * self.w2.shape[2]


def _as_it_is(x: Tensor) -> Tensor:
    return x
