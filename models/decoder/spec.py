"""Everything that tells one decoder from another, as plain numbers and switches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from evocore.nn.family import Numerics


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
class DecoderSpec:
    """A decoder-only transformer.

    Attributes:
        fused_qkv: one weight with rows ``(kv_heads, heads / kv_heads + 2, head_dim)``: for each key-value head its
            query heads, then the key, then the value (InternLM2). Otherwise wq, wk, wv.
        fused_gate_up: gate and up projections in one weight, gate rows first.
        rope_interleaved: pairs of rotary features lie side by side instead of half a head apart.
        norm_head: the rows of the head are scaled to length one in every forward pass (InternLM2, Baichuan2).
        embed_grad_scale: factor of the embedding's gradient (GLM-130B, section 3.1).
        recompute_layers: the first so many blocks drop their activations and compute them again in backward.
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
        init=InitialStd(
            **{_INIT_KEYS[name]: value for name, value in std.items() if value is not None},
            scaled=bool(settings.get("use_scaled_init", True)),
        ),
    )
    return DecoderSpec(**(common | quirks))


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
