"""Everything that tells one decoder from another, as plain numbers and switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from evocore.nn.family import Numerics
from evocore.nn.routing import RoutingRule


@dataclass(frozen=True)
class InitialStd:
    """Standard deviations of the initial weights, by what they belong to.

    With ``scaled``, the projections that write to the residual stream (attention output, MLP down) are divided by
    ``sqrt(2 * (layer + 1))``, layer counting from 0: a block's own depth, not the model's.
    """

    embedding: float = 0.02
    qkv: float = 0.02
    attention_out: float = 0.02
    mlp_in: float = 0.02
    mlp_out: float = 0.02
    head: float = 0.02
    scaled: bool = True

    def residual(self, std: float, layer: int) -> float:
        """``std`` of a projection that writes to the residual stream in block ``layer``."""
        return std / sqrt(2 * (layer + 1)) if self.scaled else std


@dataclass(frozen=True)
class MixtureSpec:
    """A mixture of experts in the place of the MLP.

    Attributes:
        rule: how many experts there are, and how tokens are sent to them.
        width: of one expert.
        shared_width: of the MLP that every token visits as well; 0 for none.
        shared_gate: its output is scaled by a sigmoid of the token.
        dense_layers: the first so many layers have the plain MLP.
    """

    rule: RoutingRule
    width: int
    shared_width: int = 0
    shared_gate: bool = False
    dense_layers: int = 0


@dataclass(frozen=True)
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        fused_qkv: one weight with rows ``(kv_heads, heads / kv_heads + 2, head_dim)``: for each key-value head its
            query heads, then the key, then the value (InternLM2). Otherwise wq, wk, wv.
        fused_gate_up: gate and up projections in one weight, gate rows first.
        rope_interleaved: pairs of rotary features lie side by side instead of half a head apart.
        norm_head: the rows of the head are scaled to length one in every forward pass (InternLM2, Baichuan2).
        embed_grad_scale: factor of the embedding's gradient (GLM-130B, section 3.1).
        tied: the head's weight is the embedding's, and starts as one.
        recompute_layers: the first so many blocks drop their activations and compute them again in backward.
        mixture: experts in the place of the MLP; None for a dense model.
    """

    vocab: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    numerics: Numerics
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_interleaved: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_head: bool = False
    embed_grad_scale: float = 1.0
    recompute_layers: int = 0
    mixture: MixtureSpec | None = None
    tied: bool = False
    init: InitialStd = InitialStd()


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``value``."""
    return -(-value // multiple) * multiple


def from_settings(settings: Mapping[str, Any], numerics: Numerics, **quirks: Any) -> DecoderSpec:
    """Read InternEvo's ``model`` keys, which all families share; ``quirks`` are what a family fixes itself."""
    heads, layers = settings["num_attention_heads"], settings["num_layers"]
    hidden = settings["hidden_size"]
    std = {name: settings.get(f"{name}_init_std") for name in _INIT_KEYS}
    common: dict[str, Any] = dict(
        vocab=settings["vocab_size"],
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=settings.get("num_kv_attention_heads") or heads,
        head_dim=settings.get("head_dim") or hidden // heads,
        feed_forward=round_up(int(hidden * settings["mlp_ratio"]), settings.get("multiple_of") or 256),
        numerics=numerics,
        norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        rope_base=settings.get("rope_base", 10000),
        rope_interleaved=bool(settings.get("qk_interleaved", False)),
        fused_gate_up=bool(settings.get("mlp_layer_fusion", False)),
        qkv_bias=_bias(settings, "qkv_bias"),
        out_bias=_bias(settings, "o_bias"),
        mlp_bias=bool(settings.get("mlp_bias")),
        norm_head=bool(settings.get("norm_head", False)),
        embed_grad_scale=settings.get("embed_grad_scale", 1),
        recompute_layers=int(float(settings.get("checkpoint", 0)) * layers),
        mixture=_mixture(settings) if settings.get("num_experts", 1) > 1 else None,
        init=InitialStd(
            **{_INIT_KEYS[name]: value for name, value in std.items() if value is not None},
            scaled=bool(settings.get("use_scaled_init", True)),
        ),
    )
    return DecoderSpec(**(common | quirks))


def _mixture(settings: Mapping[str, Any]) -> MixtureSpec:
    """The experts that InternEvo's keys describe; kinds differ in how they limit and weight an expert's tokens."""
    options, kind, top_k = settings["moe_layer_kwargs"], settings["moe_type"], settings["top_k"]
    gshard = kind == "GShard"
    drops = kind != "MegaBlock-Dropless" and options["drop_tokens"]
    factor, eval_factor = options["capacity_factor"], options["eval_capacity_factor"]
    if gshard or kind == "MegaBlock":  # which know no other way: without a number, an even share
        factor, eval_factor = factor or 1.0, eval_factor or 1.0
    normalises = options["normalize_expert_weights"] and top_k > 1  # a single weight would always be one
    width = round_up(int(settings["hidden_size"] * settings["mlp_ratio"]), settings.get("multiple_of") or 256)
    rule = RoutingRule(
        experts=settings["num_experts"],
        top_k=top_k,
        scores=options["scoring_func"],
        renormalise=normalises and not gshard,
        renormalise_kept=normalises and gshard,
        scaling=options["routed_scaling_factor"],
        groups=options["num_expert_groups"],
        kept_groups=options["top_k_groups"] or options["num_expert_groups"],
        capacity_factor=factor if drops else None,
        eval_capacity_factor=(eval_factor or factor) if drops else None,
        min_capacity=options["min_capacity"],
        drop_order="choice" if gshard else "position" if kind == "MegaBlock" else options["drop_policy"],
        balance_first=gshard,
        bias_rate=options["bias_update_rate"],
    )
    return MixtureSpec(
        rule,
        width,
        shared_width=settings["num_shared_experts"] * width,
        shared_gate=options["shared_expert_gate"] and settings["num_shared_experts"] > 0,
        dense_layers=settings.get("first_k_dense_replace") or 0,
    )


def _bias(settings: Mapping[str, Any], key: str) -> bool:
    """Whether an attention projection has a bias: by its own key, else by ``no_bias``; these families have none."""
    own = settings.get(key)
    return settings.get("no_bias") is False if own is None else bool(own)


_INIT_KEYS = {
    "embedding": "embedding",
    "attn_wqkv": "qkv",
    "attn_other": "attention_out",
    "ffn_uplayer": "mlp_in",
    "ffn_other": "mlp_out",
    "out_head": "head",
}
