"""Qwen3: queries and keys normalised head by head, heads of a size of their own, no biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import inexpressible, window_config, window_settings
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import head_norms, llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap


def _size(hidden: int, layers: int, heads: int, width: int, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=151936,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_attention_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        layer_norm_epsilon=1e-6,
        rope_base=1e6,
        qk_interleaved=False,
        **width_settings(hidden, width),
        **more,
    )


SIZES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _size(1024, 28, 16, 3072, tie_word_embeddings=True),
    "qwen3-1.7b": _size(2048, 28, 16, 6144, tie_word_embeddings=True),
    "qwen3-4b": _size(2560, 36, 32, 9728, tie_word_embeddings=True),
    "qwen3-8b": _size(4096, 36, 32, 12288),
    "qwen3-14b": _size(5120, 40, 40, 17408),
    "qwen3-32b": _size(5120, 64, 64, 25600),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys."""
    return Decoder(from_settings(settings, numerics, head_norms=True))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``Qwen3ForCausalLM``."""
    return llama_names(spec, *head_norms(spec))


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    biased = bool(config.get("attention_bias", False))
    settings = dict(common_settings(config), qkv_bias=biased, o_bias=biased)
    return settings | window_settings(config, layers_before=28)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    architecture, biased = "Qwen3ForCausalLM", settings.get("no_bias") is False
    settings = with_defaults(settings, qkv_bias=biased, o_bias=biased, mlp_bias=False)
    for key, value in (("o_bias", settings["qkv_bias"]), ("mlp_bias", False)):
        if settings[key] != value:
            raise inexpressible(key, settings[key], architecture, f"model.{key} = {value}")
    common = common_config(settings, "qwen3", architecture, own=("use_sliding_window",))
    return {**common, "attention_bias": settings["qkv_bias"], **window_config(settings)}
