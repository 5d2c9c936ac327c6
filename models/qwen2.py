"""Qwen2: Llama's block with biases on query, key and value, and a window in the upper layers as an option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import inexpressible, window_config, window_settings
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap


def _size(hidden: int, layers: int, heads: int, kv_heads: int, width: int, vocab: int, **more: Any) -> dict[str, Any]:
    return dict(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_attention_heads=kv_heads,
        max_position_embeddings=131072,
        rope_base=1e6,
        qk_interleaved=False,
        **width_settings(hidden, width),
        **{"layer_norm_epsilon": 1e-6, **more},
    )


SIZES: dict[str, dict[str, Any]] = {
    "qwen2-0.5b": _size(896, 24, 14, 2, 4864, 151936, tie_word_embeddings=True),
    "qwen2-1.5b": _size(1536, 28, 12, 2, 8960, 151936, tie_word_embeddings=True),
    "qwen2-7b": _size(3584, 28, 28, 4, 18944, 152064),
    "qwen2-72b": _size(8192, 80, 64, 8, 29568, 152064, layer_norm_epsilon=1e-5),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; with ``use_sliding_window``, layers from ``max_window_layers`` on."""
    return Decoder(from_settings(_own(settings), numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``Qwen2ForCausalLM``."""
    return llama_names(spec)


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec, ends=("embed_tokens", "output"))


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    return common_settings(config) | window_settings(config, layers_before=28)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    settings, architecture = _own(settings), "Qwen2ForCausalLM"
    for key, value in (("qkv_bias", True), ("o_bias", False), ("mlp_bias", False)):
        if bool(settings.get(key)) != value:
            raise inexpressible(key, settings.get(key), architecture, f"model.{key} = {value}")
    return common_config(settings, "qwen2", architecture, own=("use_sliding_window",)) | window_config(settings)


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return with_defaults(settings, qkv_bias=not settings.get("no_bias"), o_bias=False)
