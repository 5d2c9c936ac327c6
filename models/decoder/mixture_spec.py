"""What a mixture of experts is made of, read from InternEvo's keys and those that later models need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evocore.nn.routing import DropOrder, Noise, RoutingRule

NOISE: dict[str | None, Noise] = {"Jitter": "jitter", "RSample": "gumbel"}
"""What InternEvo's ``noisy_gate_policy`` calls it."""


@dataclass(frozen=True)
class MixtureSpec:
    """A mixture of experts in the place of the MLP.

    Attributes:
        rule: how many experts there are, and how tokens are sent to them.
        width: of one expert.
        shared_width: of the MLP that every token visits as well; 0 for none.
        shared_gate: its output is scaled by a sigmoid of the token.
        dense_layers: those that have the plain MLP.
    """

    rule: RoutingRule
    width: int
    shared_width: int = 0
    shared_gate: bool = False
    dense_layers: frozenset[int] = frozenset()


def read_mixture(settings: Mapping[str, Any], feed_forward: int) -> MixtureSpec:
    """The experts that a ``model`` block describes; its kinds differ in how they limit and weight an expert's tokens.

    Args:
        feed_forward: width of a dense layer's MLP, and of an expert that has no width of its own.
    """
    options, kind, top_k = settings["moe_layer_kwargs"], settings["moe_type"], settings["top_k"]
    gshard = kind == "GShard"
    drops = kind != "MegaBlock-Dropless" and options["drop_tokens"]
    by_chance = gshard and top_k == 1 and options["use_rts"]
    factor, eval_factor = options["capacity_factor"], options["eval_capacity_factor"]
    if gshard or kind == "MegaBlock":  # which know no other way: without a number, an even share
        factor, eval_factor = factor or 1.0, eval_factor or 1.0
    normalises = options["normalize_expert_weights"] is not False and top_k > 1  # a single weight would always be one
    width = settings.get("moe_intermediate_size") or feed_forward
    rule = RoutingRule(
        experts=settings["num_experts"],
        top_k=top_k,
        scores=options["scoring_func"] or "softmax",
        renormalise=normalises and not gshard,
        renormalise_kept=normalises and gshard,
        scaling=options["routed_scaling_factor"],
        groups=options["num_expert_groups"],
        kept_groups=options["top_k_groups"] or options["num_expert_groups"],
        capacity_factor=factor if drops else None,
        eval_capacity_factor=(eval_factor or factor) if drops else None,
        min_capacity=options["min_capacity"],
        drop_order=_drop_order(kind, by_chance, options["drop_policy"]),
        noise=NOISE.get(options["noisy_gate_policy"]),
        balance_first=gshard and options["aux_loss_by_layer"],
        balance_layers=not options["aux_loss_by_layer"],
        bias_rate=options["bias_update_rate"],
    )
    return MixtureSpec(
        rule,
        width,
        shared_width=settings["num_shared_experts"] * width,
        shared_gate=bool(options["shared_expert_gate"]) and settings["num_shared_experts"] > 0,
        dense_layers=_dense_layers(settings),
    )


def _drop_order(kind: str, by_chance: bool, policy: DropOrder) -> DropOrder:
    if kind == "GShard":
        return "random" if by_chance else "choice"
    return "position" if kind == "MegaBlock" else policy


def _dense_layers(settings: Mapping[str, Any]) -> frozenset[int]:
    """The first ones (DeepSeek), those that are listed, and all but every n-th (Qwen2-MoE)."""
    first, listed = settings.get("first_k_dense_replace") or 0, settings.get("mlp_only_layers") or ()
    every = settings.get("decoder_sparse_step") or 1
    layers = range(settings["num_layers"])
    return frozenset(layer for layer in layers if layer < first or layer in listed or (layer + 1) % every)
