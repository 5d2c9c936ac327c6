"""The router of a mixture-of-experts layer: a small weight in float32, a rule, and a record of what it did.

Its auxiliary losses are no output. They are attached to the weights that it returns, whose gradient passes through
them, so that they act wherever backward gets to, whatever runs the layers and in whatever pieces.

Shapes: T tokens of a micro-batch that are here, D hidden, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from evocore.nn import routing
from evocore.nn.balance import BalanceOverLayers
from evocore.nn.draws import gumbel, uniform
from evocore.nn.roles import Role
from evocore.nn.routing import JITTER, RoutingRule
from evocore.seeds import derive_seed


class Scorer(nn.Module):
    """``x @ weight.T`` in float32, whatever the model computes in: logits of a few decisions per token."""

    def __init__(self, width: int, outputs: int, *, init_std: float) -> None:
        super().__init__()
        self.role, self.init_std = Role.ROUTER, init_std
        self.weight = nn.Parameter(torch.empty(outputs, width, dtype=torch.float32))

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.linear(x_TD.float(), self.weight)


class Routing(NamedTuple):
    """Where tokens go.

    ``experts_TK`` is int64 with ``routing.DROPPED`` for choices that no expert takes; ``weights_TK`` is float32.
    """

    experts_TK: Tensor
    weights_TK: Tensor


class MicroBatchTokens:
    """How the tokens that a router sees make up a micro-batch: here, all of them do.

    A strategy that divides a micro-batch's tokens over ranks replaces it.

    Attributes:
        parts: ranks that share the tokens evenly.
    """

    parts = 1

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all parts; the gradient of a part is that of the sum. ``x`` may be overwritten."""
        return x

    def gather(self, x: Tensor) -> Tensor:
        """``[T, ...]`` of all parts, without gradient."""
        return x

    def own(self, x: Tensor) -> Tensor:
        """This part of what ``gather`` returned."""
        return x


@dataclass(frozen=True)
class LossWeights:
    """Factors of a micro-batch's auxiliary losses in what is differentiated."""

    balance: float = 0.0
    z: float = 0.0


class Record:
    """What a router did in the forward passes of a step, in float32 on the device.

    Columns: choices of each expert (E), those of them that it took (E), tokens, sum of entropies, balance losses and
    z-losses of micro-batches. Of a micro-batch shared by ranks, each records its part.
    """

    def __init__(self, experts: int) -> None:
        self.experts = experts
        self.sums: Tensor | None = None

    def add(self, load_E: Tensor, kept_E: Tensor, scalars: Tensor) -> None:
        new = torch.cat([load_E, kept_E, scalars]).float()
        self.sums = new if self.sums is None else self.sums + new

    def take(self) -> Tensor | None:
        """``[2 E + 4]`` since the last time."""
        found, self.sums = self.sums, None
        return found


class Router(Scorer):
    """Chooses K of E experts for each token.

    The balance and z-losses are those of a whole micro-batch: means over all its tokens, on however many ranks these
    are. So is the capacity of an expert.

    Args:
        layer: its number in the model.

    Attributes:
        tokens: who has the rest of the micro-batch.
        loss_weights: of the auxiliary losses; none unless training sets them.
        together: makes one balance loss of those of all layers; None for a loss of each.
        record: of what it did with gradients enabled.
        seed: of the random numbers of a micro-batch, in training if the rule needs any.
        bias: float32 ``[E]``, added to the scores when experts are chosen and not otherwise; None without it.
    """

    bias: Tensor | None

    def __init__(self, width: int, rule: RoutingRule, *, layer: int, init_std: float) -> None:
        super().__init__(width, rule.experts, init_std=init_std)
        self.rule, self.layer = rule, layer
        self.tokens, self.loss_weights, self.record = MicroBatchTokens(), LossWeights(), Record(rule.experts)
        self.seed: int | None = None
        self.together: BalanceOverLayers | None = None
        bias = torch.zeros(rule.experts, dtype=torch.float32) if rule.bias_rate is not None else None
        self.register_buffer("bias", bias)

    def forward(self, x_TD: Tensor) -> Routing:  # type: ignore[override]
        rule = self.rule
        if self.training and rule.noise == "jitter":
            x_TD = x_TD.float() * (1 + JITTER * (2 * uniform(*self._drawn(x_TD, "input"), x_TD.shape[1]) - 1))
        logits_TE = super().forward(x_TD)
        scores_TE = routing.expert_scores(logits_TE, rule.scores)
        ranking_TE = scores_TE.detach()
        if self.training and rule.noise == "gumbel":
            ranking_TE = logits_TE.detach() + gumbel(*self._drawn(x_TD, "choice"), rule.experts)
        wanted_TK = routing.choose_experts(
            ranking_TE, rule.top_k, bias_E=self.bias, groups=rule.groups, kept_groups=rule.kept_groups
        )
        scores_TK = scores_TE.gather(1, wanted_TK)
        experts_TK = self._drop(wanted_TK, scores_TK.detach())
        if rule.renormalise_kept:
            scores_TK = scores_TK.where(experts_TK >= 0, 0)
        weights_TK = routing.combine_weights(
            scores_TK, renormalise=rule.renormalise or rule.renormalise_kept, scaling=rule.scaling
        )
        if torch.is_grad_enabled():
            loss = self._account(logits_TE, scores_TE, wanted_TK, experts_TK)
            if loss is not None:
                weights_TK = _Attach.apply(weights_TK, loss)
        return Routing(experts_TK, weights_TK)

    def correct_bias(self, load_E: Tensor) -> None:
        """Balance a step's loads, those of all tokens that it trained on."""
        if self.bias is not None and self.rule.bias_rate:
            self.bias.copy_(routing.corrected_bias(self.bias, load_E, self.rule.bias_rate))

    def _drawn(self, x_TD: Tensor, purpose: str) -> tuple[int, Tensor]:
        """Key and rows of this rank's random numbers."""
        assert self.seed is not None, "no seed was set for a micro-batch of training"
        places_T = torch.arange(len(x_TD) * self.tokens.parts, dtype=torch.int64, device=x_TD.device)
        return derive_seed(self.seed, self.layer, purpose), self.tokens.own(places_T)

    def _drop(self, wanted_TK: Tensor, scores_TK: Tensor) -> Tensor:
        capacity = self.rule.capacity(len(wanted_TK) * self.tokens.parts, self.training)
        if capacity is None:
            return wanted_TK
        order = self.rule.drop_order
        if self.training and order == "random":
            scores_TK, order = uniform(*self._drawn(wanted_TK, "order"), self.rule.top_k), "probs"
        everyones = self.tokens.gather(wanted_TK), self.tokens.gather(scores_TK)
        return self.tokens.own(routing.drop(*everyones, self.rule.experts, capacity, order))

    def _account(self, logits_TE: Tensor, scores_TE: Tensor, wanted_TK: Tensor, experts_TK: Tensor) -> Tensor | None:
        """Record the pass and return the weighted sum of its auxiliary losses, if they have weights."""
        rule, weights, tokens = self.rule, self.loss_weights, len(logits_TE) * self.tokens.parts
        probability_TE = routing.probabilities(scores_TE, rule.scores)
        load_E = routing.loads(wanted_TK, rule.experts)
        balance = z = logits_TE.new_zeros(())
        loss = None
        if weights != LossWeights():
            counted_E = routing.loads(wanted_TK[:, :1], rule.experts) if rule.balance_first else load_E
            parts = [counted_E.float(), probability_TE.sum(0), routing.z_losses(logits_TE).sum(0, keepdim=True)]
            counted_E, probability_E, z = self.tokens.sum(torch.cat(parts)).split([rule.experts, rule.experts, 1])
            if self.together is None:
                balance = routing.balance_loss(counted_E.detach(), probability_E / tokens)
            else:
                balance = self.together.loss(counted_E.detach(), probability_E, tokens, again=_recomputes())
            z = z.squeeze(0) / tokens
            loss = weights.balance * balance + weights.z * z
        if not _recomputes():
            with torch.no_grad():
                losses = torch.stack([balance.detach(), z.detach()]) / self.tokens.parts
                tokens_here = losses.new_full((), len(logits_TE))
                mine = torch.stack([tokens_here, routing.entropies(probability_TE).sum()])
                self.record.add(load_E, routing.loads(experts_TK, rule.experts), torch.cat([mine, losses]))
        return loss


def _recomputes() -> bool:
    """Whether this forward runs inside of a backward, for activations that were dropped."""
    return torch._C._current_graph_task_id() != -1


class _Attach(torch.autograd.Function):
    """Adds ``loss`` to whatever is differentiated through ``x``, with a factor of one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.one = torch.ones_like(loss)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return grad, ctx.one
