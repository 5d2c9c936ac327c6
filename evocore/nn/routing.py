"""Which experts a token goes to, with what weights, and how far the experts' loads are from even: as pure functions.

Formulas are those of GShard (Lepikhin et al., 2021), Switch (Fedus et al., 2022), ST-MoE (Zoph et al., 2022) and
DeepSeek-V3 (DeepSeek-AI, 2024).

Shapes: T tokens, E experts, K experts per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor

DROPPED = -1
"""In place of an expert's number: the expert was full."""

Scores = Literal["softmax", "sigmoid"]
DropOrder = Literal["probs", "position", "choice", "random"]
"""Who goes first where an expert's places are few: the highest score; the first token; GShard's order, the first
choices of all tokens before any second choice, and tokens in order; or in training who is drawn, and otherwise
GShard's order (its random token selection)."""

Noise = Literal["jitter", "gumbel"]
"""In training: the router's input is multiplied by numbers around one; or what is drawn is added to logits before
experts are chosen, which so are a sample from their probabilities, and nothing to their weights."""
JITTER = 0.01
"""By how much the numbers may differ from one (Fedus et al., 2022, section 2.4)."""


@dataclass(frozen=True)
class RoutingRule:
    """How experts are chosen and weighted.

    Attributes:
        experts: E.
        top_k: K.
        scores: softmax over all experts, or a sigmoid of each.
        renormalise: scale the chosen scores of a token to sum to one; those of its dropped choices are lost.
        renormalise_kept: as ``renormalise``, but over what was not dropped (GShard).
        scaling: factor of all weights.
        groups, kept_groups: experts are divided into so many groups of neighbours, of which a token may use so many:
            those whose two best experts have the highest sum (DeepSeek-V3, section 2.1.2).
        capacity_factor: choices that an expert takes, relative to an even share; None for all.
        eval_capacity_factor: likewise outside of training.
        min_capacity: the least that an expert takes.
        drop_order: see ``DropOrder``.
        noise: see ``Noise``; None for none.
        balance_first: the balance loss counts first choices only (GShard) instead of all (Switch, where K is 1).
        balance_layers: there is one balance loss over all layers at once (Hugging Face), see ``evocore.nn.balance``.
        bias_rate: by how much a step corrects the bias with which experts are chosen, DeepSeek-V3's way to balance
            loads without a loss; None for no bias.
    """

    experts: int
    top_k: int
    scores: Scores = "softmax"
    renormalise: bool = False
    renormalise_kept: bool = False
    scaling: float = 1.0
    groups: int = 1
    kept_groups: int = 1
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    min_capacity: int = 0
    drop_order: DropOrder = "probs"
    noise: Noise | None = None
    balance_first: bool = False
    balance_layers: bool = False
    bias_rate: float | None = None

    @property
    def draws(self) -> bool:
        """Whether training needs random numbers."""
        return self.noise is not None or self.drop_order == "random"

    def capacity(self, tokens: int, training: bool) -> int | None:
        """Choices that each expert takes of a micro-batch of so many tokens; None for all."""
        factor = self.capacity_factor if training else self.eval_capacity_factor
        return None if factor is None else capacity(tokens, self.experts, self.top_k, factor, self.min_capacity)


def expert_scores(logits_TE: Tensor, kind: Scores) -> Tensor:
    """``[T, E]`` in (0, 1); a token's scores sum to one for softmax only."""
    return logits_TE.softmax(1) if kind == "softmax" else logits_TE.sigmoid()


def probabilities(scores_TE: Tensor, kind: Scores) -> Tensor:
    """The scores as a distribution over experts."""
    return scores_TE if kind == "softmax" else scores_TE / scores_TE.sum(1, keepdim=True)


def choose_experts(
    scores_TE: Tensor, top_k: int, *, bias_E: Tensor | None = None, groups: int = 1, kept_groups: int = 1
) -> Tensor:
    """``[T, K]`` int64, the best first: the highest of ``scores + bias`` among the experts of the best groups."""
    ranking_TE = scores_TE if bias_E is None else scores_TE + bias_E
    if kept_groups < groups:
        by_group_TGe = ranking_TE.unflatten(1, (groups, -1))
        best_TG = by_group_TGe.topk(min(2, by_group_TGe.shape[2]), dim=2).values.sum(2)
        kept_TG = torch.zeros_like(best_TG, dtype=torch.bool).scatter_(1, best_TG.topk(kept_groups).indices, True)
        ranking_TE = by_group_TGe.masked_fill(~kept_TG[:, :, None], float("-inf")).flatten(1)
    return ranking_TE.topk(top_k, dim=1).indices


def combine_weights(scores_TK: Tensor, *, renormalise: bool, scaling: float = 1.0) -> Tensor:
    """Weights of the experts' results: the chosen scores, or these scaled to sum to one, times ``scaling``."""
    if renormalise:
        scores_TK = scores_TK / (scores_TK.sum(1, keepdim=True) + 1e-20)
    return scores_TK if scaling == 1 else scores_TK * scaling


def capacity(tokens: int, experts: int, top_k: int, factor: float, minimum: int = 0) -> int:
    """``max(ceil(factor T K / E), minimum)``."""
    return max(ceil(factor * tokens * top_k / experts), minimum)


def drop(experts_TK: Tensor, scores_TK: Tensor, experts: int, capacity: int, order: DropOrder) -> Tensor:
    """``experts_TK`` with ``DROPPED`` for what an expert takes no more, when choices come to it in ``order``.

    Random numbers are given as scores of the order "probs".

    Ties of scores go to the earlier token, then to the earlier choice.
    """
    tokens, top_k = experts_TK.shape
    if order in ("choice", "random"):
        place_TK = _places(experts_TK.T.flatten(), experts).view(top_k, tokens).T
    elif order == "position":
        place_TK = _places(experts_TK.flatten(), experts).view(tokens, top_k)
    else:
        queue = scores_TK.flatten().argsort(descending=True, stable=True)
        place = torch.empty_like(queue)
        place[queue] = _places(experts_TK.flatten()[queue], experts)
        place_TK = place.view(tokens, top_k)
    return experts_TK.where(place_TK < capacity, DROPPED)


def _places(experts_n: Tensor, experts: int) -> Tensor:
    """How many earlier choices there are of the same expert."""
    sorted_n, order = experts_n.sort(stable=True)
    starts_E = torch.searchsorted(sorted_n, torch.arange(experts, device=experts_n.device))
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - starts_E[sorted_n]
    return place


def loads(experts_TK: Tensor, experts: int) -> Tensor:
    """``[E]`` int64: how many choices go to each expert; ``DROPPED`` counts for none."""
    flat = experts_TK.flatten()
    counts = torch.zeros(experts + 1, dtype=torch.int64, device=flat.device)
    counts.scatter_add_(0, flat.where(flat >= 0, experts), torch.ones_like(flat))
    return counts[:experts]


def balance_loss(load_E: Tensor, probability_E: Tensor) -> Tensor:
    """``E sum_e f_e P_e`` (Switch, equation 4), 1 if all is even.

    Args:
        load_E: choices of each expert; f are their shares, without gradient.
        probability_E: P, the mean over tokens of each expert's probability.
    """
    share_E = load_E / load_E.sum()
    return len(load_E) * (share_E * probability_E).sum()


def z_losses(logits_TE: Tensor) -> Tensor:
    """``[T]``: ``logsumexp(logits)^2``, which keeps the router's logits small (ST-MoE, equation 5)."""
    return logits_TE.logsumexp(1).square()


def entropies(probabilities_TE: Tensor) -> Tensor:
    """``[T]`` in nats: ``log E`` for a router that does not care, 0 for one that is sure."""
    entropy_TE: Tensor = torch.special.entr(probabilities_TE)
    return entropy_TE.sum(1)


def corrected_bias(bias_E: Tensor, load_E: Tensor, rate: float) -> Tensor:
    """The bias after a step: up by ``rate`` where an expert had less than the mean, down where it had more."""
    return bias_E + rate * (load_E.mean() - load_E).sign()
