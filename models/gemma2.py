"""Gemma 2: Gemma with norms behind attention and MLP as well, soft caps on scores, a window in every other layer."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from evocore.models.decoder.hugging_face import common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import kinds_from
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings
from evocore.models.decoder.weights import LLAMA, OURS, llama_names
from evocore.models.gemma import ACTIVATION, gemma_config, own
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap
from evocore.nn.weight_rules import same


def _size(
    hidden: int, layers: int, heads: int, kv_heads: int, width: int, head_dim: int = 256, scalar: float = 256
) -> dict[str, Any]:
    return dict(
        vocab_size=256000,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_attention_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=8192,
        layer_norm_epsilon=1e-6,
        rope_base=10000.0,
        qk_interleaved=False,
        use_sliding_window=True,
        sliding_window=4096,
        query_pre_attn_scalar=scalar,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        **width_settings(hidden, width),
    )


SIZES: dict[str, dict[str, Any]] = {
    "gemma2-2b": _size(2304, 26, 8, 4, 9216),
    "gemma2-9b": _size(3584, 42, 16, 8, 14336),
    "gemma2-27b": _size(4608, 46, 32, 16, 36864, head_dim=128, scalar=144),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys.

    With ``use_sliding_window`` the first of each two layers has the window, unless ``layer_types`` or
    ``max_window_layers`` says otherwise.
    """
    settings = dict(own(settings), layer_types=_kinds(settings))
    return Decoder(from_settings(settings, numerics, embedding_scale=sqrt(settings["hidden_size"]), post_norms=True))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``Gemma2ForCausalLM``."""
    return llama_names(
        spec,
        same(f"{OURS}.attention_post_norm.weight", f"{LLAMA}.post_attention_layernorm.weight"),
        same(f"{OURS}.ffn_post_norm.weight", f"{LLAMA}.post_feedforward_layernorm.weight"),
        ffn_norm="pre_feedforward_layernorm",
    )


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_activation", ACTIVATION)
    biased, kinds = bool(config.get("attention_bias", False)), config.get("layer_types")
    settings = dict(
        common_settings(config),
        qkv_bias=biased,
        o_bias=biased,
        tie_word_embeddings=bool(config.get("tie_word_embeddings", True)),
        query_pre_attn_scalar=config.get("query_pre_attn_scalar", 256),
        attn_logit_softcapping=config.get("attn_logit_softcapping"),
        final_logit_softcapping=config.get("final_logit_softcapping"),
    )
    if config.get("sliding_window") is not None and (kinds is None or "sliding_attention" in kinds):
        settings |= {"use_sliding_window": True, "sliding_window": config["sliding_window"]}
        if kinds is not None and kinds != _alternating(len(kinds)):
            settings["layer_types"] = list(kinds)
    return settings


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    softcaps = ("attn_logit_softcapping", "final_logit_softcapping")
    has = ("use_sliding_window", "query_pre_attn_scalar", *softcaps)
    config = gemma_config(settings, "gemma2", "Gemma2ForCausalLM", has)
    windowed = bool(settings.get("use_sliding_window"))
    scalar = settings.get("query_pre_attn_scalar") or config["head_dim"]
    return dict(
        config,
        query_pre_attn_scalar=int(scalar) if scalar == int(scalar) else scalar,
        sliding_window=settings.get("sliding_window") or config["max_position_embeddings"],  # the class wants one
        layer_types=_kinds(settings) if windowed else ["full_attention"] * settings["num_layers"],
        **{key: settings.get(key) for key in softcaps},
    )


def _kinds(settings: Mapping[str, Any]) -> list[str]:
    layers, first = settings["num_layers"], settings.get("max_window_layers")
    if settings.get("layer_types") is not None:
        return list(settings["layer_types"])
    return _alternating(layers) if first is None else kinds_from(first, layers)


def _alternating(layers: int) -> list[str]:
    return ["full_attention" if layer % 2 else "sliding_attention" for layer in range(layers)]
