"""One balance loss over all layers of a model, as Hugging Face's mixtures of experts have it.

Routers of lower layers have to know what those of higher layers chose. They need not wait for it: what is
differentiated are the probabilities alone, and when backward gets to a layer, all layers have chosen.

Shapes: E experts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Pass:
    """What the routers of one forward pass have found so far, in float32.

    Attributes:
        load_E: choices of each expert.
        probability_E: sums of probabilities over tokens.
        tokens: that routers have seen; a token counts once for each of them.
        routers: that have added what they found.
    """

    def __init__(self) -> None:
        self.load_E: Tensor | float = 0.0
        self.probability_E: Tensor | float = 0.0
        self.tokens = self.routers = 0

    def slopes(self) -> Tensor:
        """``[E]`` of the loss, for the probability of each expert in one token of one layer."""
        assert isinstance(self.load_E, Tensor)
        return len(self.load_E) * self.load_E / self.tokens**2


class BalanceOverLayers:
    """``E sum_e f_e P_e`` with means over tokens of all layers (``load_balancing_loss_func`` of ``transformers``).

    f are choices per token, which sum to the number of experts that a token visits: where all is even, the loss is
    that number. It is K times the mean of what layers have by themselves, if these have the same loads.

    Args:
        routers: of the model, each of which takes part in every forward pass.
    """

    def __init__(self, routers: int) -> None:
        self._routers, self._pass = routers, Pass()

    def loss(self, load_E: Tensor, probability_E: Tensor, tokens: int, *, again: bool) -> Tensor:
        """One router's share of the loss: for the gradient its own, for the value all of it or, before the last, 0.

        Args:
            load_E: choices of each expert among the tokens of a micro-batch.
            probability_E: sums of probabilities over these.
            tokens: how many there are.
            again: this repeats the router's part in the last pass.
        """
        if not again:
            if self._pass.routers == self._routers:
                self._pass = Pass()
            self._pass.load_E = self._pass.load_E + load_E.float()
            self._pass.probability_E = self._pass.probability_E + probability_E.detach()
            self._pass.tokens += tokens
            self._pass.routers += 1
        share: Tensor = _Share.apply(probability_E, self._pass, self._pass.routers == self._routers)
        return share


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, probability_E: Tensor, all_layers: Pass, complete: bool) -> Tensor:
        ctx.all_layers = all_layers
        if not complete:
            return probability_E.new_zeros(())
        return (all_layers.slopes() * all_layers.probability_E).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.all_layers.slopes(), None, None
