"""Llama 2: separate wq, wk and wv, no biases, a plain head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require
from evocore.models.decoder.hugging_face_options import inexpressible
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings
from evocore.models.decoder.weights import llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap

_COMMON: dict[str, Any] = dict(
    vocab_size=32000,
    max_position_embeddings=4096,
    layer_norm_epsilon=1e-5,
    rope_base=10000.0,
    qk_interleaved=False,
)
SIZES: dict[str, dict[str, Any]] = {
    "llama2-7b": dict(
        _COMMON, hidden_size=4096, num_layers=32, num_attention_heads=32, num_kv_attention_heads=32, mlp_ratio=8 / 3
    ),
    "llama2-13b": dict(
        _COMMON, hidden_size=5120, num_layers=40, num_attention_heads=40, num_kv_attention_heads=40, mlp_ratio=8 / 3
    ),
    "llama2-70b": dict(
        _COMMON, hidden_size=8192, num_layers=80, num_attention_heads=64, num_kv_attention_heads=8, mlp_ratio=3.5
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``num_kv_attention_heads`` gives grouped queries."""
    return Decoder(from_settings(settings, numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``LlamaForCausalLM``."""
    return llama_names(spec)


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec)


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    settings = common_settings(config)
    if config.get("attention_bias"):
        settings |= {"qkv_bias": True, "o_bias": True}
    if config.get("mlp_bias"):
        settings["mlp_bias"] = True
    return settings


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    biased = settings.get("no_bias") is False
    own = [biased if settings.get(key) is None else bool(settings[key]) for key in ("qkv_bias", "o_bias")]
    if own[0] != own[1]:
        raise inexpressible("o_bias", own[1], "LlamaForCausalLM", f"model.o_bias = {own[0]}, as model.qkv_bias is")
    return dict(
        common_config(settings, "llama", "LlamaForCausalLM"),
        attention_bias=all(own),
        mlp_bias=bool(settings.get("mlp_bias")),
    )
