"""Gemma: norms that multiply by one plus their weight, GeGLU, a scaled embedding that is the head's weight, too."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import inexpressible
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap

ACTIVATION = "gelu_pytorch_tanh"


def _size(hidden: int, layers: int, heads: int, kv_heads: int, width: int) -> dict[str, Any]:
    return dict(
        vocab_size=256000,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_attention_heads=kv_heads,
        head_dim=256,
        max_position_embeddings=8192,
        layer_norm_epsilon=1e-6,
        rope_base=10000.0,
        qk_interleaved=False,
        **width_settings(hidden, width),
    )


SIZES: dict[str, dict[str, Any]] = {
    "gemma-2b": _size(2048, 18, 8, 1, 16384),
    "gemma-7b": _size(3072, 28, 16, 16, 24576),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``tie_word_embeddings=False`` gives the head a weight of its own."""
    return Decoder(from_settings(own(settings), numerics, embedding_scale=sqrt(settings["hidden_size"])))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``GemmaForCausalLM``."""
    return llama_names(spec)


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec, ends=("embed_tokens", "output"))


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", ACTIVATION, "gelu")  # early files name the form that was not meant
    biased = bool(config.get("attention_bias", False))
    tied = bool(config.get("tie_word_embeddings", True))
    return dict(common_settings(config), qkv_bias=biased, o_bias=biased, tie_word_embeddings=tied)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    return gemma_config(settings, "gemma", "GemmaForCausalLM", ())


def own(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what the Gemmas have in common."""
    return with_defaults(settings, add_unit_offset=True, use_swiglu=False, tie_word_embeddings=True)


def gemma_config(
    settings: Mapping[str, Any], model_type: str, architecture: str, more: tuple[str, ...]
) -> dict[str, Any]:
    """What ``config.json`` says of every Gemma; ``more`` are options that the class has beside the common ones."""
    biased = settings.get("no_bias") is False
    settings = with_defaults(own(settings), qkv_bias=biased, o_bias=biased, mlp_bias=False)
    config = common_config(settings, model_type, architecture, own=("add_unit_offset", "use_swiglu", *more))
    for key, value in (
        ("add_unit_offset", True),
        ("use_swiglu", False),
        ("o_bias", settings["qkv_bias"]),
        ("mlp_bias", False),
    ):
        if settings[key] != value:
            raise inexpressible(key, settings[key], architecture, f"model.{key} = {value}")
    return dict(config, attention_bias=settings["qkv_bias"], hidden_act=ACTIVATION, hidden_activation=ACTIVATION)
