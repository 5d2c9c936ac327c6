"""Traffic of mixtures of experts: rows to the experts and back, what routers ask of one another, gathered weights.

How many rows go where is decided by the data. Of an even spread all ranks send and get the same; of a step that was
watched, ``Routed`` says what really went.

Shapes: T tokens of a micro-batch, D hidden, E experts, K experts per token, W ranks of a group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from evocore.nn.experts import ExpertLinear, RoutedExperts
from evocore.nn.router import Router
from evocore.nn.routing import RoutingRule
from evocore.parallel.blocks import last_layer
from evocore.parallel.layout import Layout
from evocore.parallel.traffic.ledger import Ledger
from evocore.parallel.traffic.uses import Uses

_CHOICE, _WEIGHT = torch.int64.itemsize, torch.float32.itemsize


@dataclass(frozen=True)
class Routed:
    """Rows of one mixture in the micro-batches of one step, of one rank of an expert group.

    Attributes:
        sent: to the experts of all ranks, its own included.
        received: from all ranks.
    """

    sent: int
    received: int


def routed_experts(
    ledger: Ledger,
    uses: Uses,
    layout: Layout,
    tokens: int,
    micro_batches: int,
    *,
    auxiliary_losses: bool,
    routed: Mapping[int, Routed] | None = None,
) -> None:
    """Of a step with M micro-batches of T tokens.

    Args:
        auxiliary_losses: whether routers have any.
        routed: by number of the layer in the model; an even spread if left out.
    """
    for number, block in enumerate(uses.blocks):
        router = next((module for module in block.modules() if isinstance(module, Router)), None)
        if router is None:
            continue
        (experts,) = (module for module in block.modules() if isinstance(module, RoutedExperts))
        forwards = uses.forwards(number)
        with ledger.repeated(micro_batches):
            _router(ledger, router.rule, layout, tokens, forwards, auxiliary_losses=auxiliary_losses)
            last = last_layer(block) is last_layer(experts)
            _shared_experts(ledger, experts, layout, tokens, forwards, leaves=1 if last else forwards)
            counts = router.rule.experts * _CHOICE
            ledger.add("expert", "all_to_all", "how many rows go to each expert", counts, forwards)
        if routed is None:
            sent = micro_batches * _even(router.rule, layout, tokens)
            rows = Routed(sent, sent)
        else:
            rows = routed[router.layer]
        row = experts.hidden * experts.dtype.itemsize
        for purpose, count, times in (
            ("rows to their experts", rows.sent, forwards),
            ("results of experts to their tokens", rows.received, forwards),
            ("gradients of the results of experts", rows.sent, 1),
            ("gradients of the rows of experts", rows.received, 1),
        ):
            ledger.add_total("expert", "all_to_all", purpose, micro_batches * times, count * row * times)


def _even(rule: RoutingRule, layout: Layout, tokens: int) -> int:
    """Rows that a rank sends of one micro-batch if all experts get the same."""
    rows, capacity = tokens * rule.top_k, rule.capacity(tokens, training=True)
    kept = rows if capacity is None else min(rows, rule.experts * capacity)
    return kept if layout.part("expert_tensor").parts > 1 else kept // layout.part("tensor").parts


def _router(
    ledger: Ledger, rule: RoutingRule, layout: Layout, tokens: int, forwards: int, *, auxiliary_losses: bool
) -> None:
    """Where ranks have different tokens, capacity and losses are those of the whole micro-batch."""
    if layout.mode == "mtp":
        return
    choices = tokens * rule.top_k
    if rule.capacity(tokens, training=True) is not None:
        ledger.add("tensor", "all_gather", "router: everyone's choices", choices * _CHOICE, forwards)
        ledger.add("tensor", "all_gather", "router: everyone's scores", choices * _WEIGHT, forwards)
    if auxiliary_losses:
        ledger.add("tensor", "all_reduce", "router: loads and losses", (2 * rule.experts + 1) * _WEIGHT, forwards)


def _shared_experts(
    ledger: Ledger, experts: RoutedExperts, layout: Layout, tokens: int, forwards: int, *, leaves: int
) -> None:
    """How the tokens of a tensor group get to the ranks that send them, and their results back."""
    replicated, divided = layout.mode == "mtp", layout.part("expert_tensor").parts > 1
    whole = tokens * experts.hidden * experts.dtype.itemsize
    choices = tokens * experts.top_k
    weights = choices * _WEIGHT
    if divided and replicated:
        ledger.add("tensor", "all_reduce", "experts: gradient of the input", whole)
        ledger.add("tensor", "all_reduce", "experts: gradient of the weights of choices", weights)
        ledger.add("tensor", "all_reduce", "experts: output", whole, leaves)
    elif divided:
        ledger.add("tensor", "all_gather", "experts: input", whole, forwards)
        ledger.add("tensor", "all_gather", "experts: choices", choices * _CHOICE, forwards)
        ledger.add("tensor", "all_gather", "experts: weights of choices", weights, forwards)
        ledger.add("tensor", "reduce_scatter", "experts: gradient of the input", whole)
        ledger.add("tensor", "reduce_scatter", "experts: gradient of the weights of choices", weights)
        ledger.add("tensor", "reduce_scatter", "experts: output", whole, leaves)
        ledger.add("tensor", "all_gather", "experts: gradient of the output", whole)
    elif replicated:
        ledger.add("tensor", "all_gather", "experts: gradient of the input", whole)
        ledger.add("tensor", "all_gather", "experts: gradient of the weights of choices", weights)
        ledger.add("tensor", "all_gather", "experts: output", whole, leaves)


def expert_weights(ledger: Ledger, model: nn.Module, layout: Layout) -> None:
    """Weights of experts in isp, of one micro-batch: together for forward and for backward, as other weights."""
    ranks = layout.part("expert_weight").parts
    for layer in model.modules():
        if isinstance(layer, ExpertLinear):
            size = ranks * layer.weight.nbytes
            ledger.add("expert_weight", "all_gather", "weights of experts for forward", size)
            ledger.add("expert_weight", "all_gather", "weights of experts for backward", size)
            ledger.add("expert_weight", "reduce_scatter", "gradients of weights of experts", size)
