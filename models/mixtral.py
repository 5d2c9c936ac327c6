"""Mixtral: Llama's block with a mixture of experts in the place of every MLP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require
from evocore.models.decoder.hugging_face_mixture import normalises, require_router, router_settings
from evocore.models.decoder.hugging_face_options import inexpressible, require_biases
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.mixture_weights import mixture
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, read_windows
from evocore.models.decoder.weights import LLAMA, llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap

_COMMON: dict[str, Any] = dict(
    num_kv_attention_heads=8,
    layer_norm_epsilon=1e-5,
    rope_base=1e6,
    qk_interleaved=False,
    num_experts=8,
    top_k=2,
    moe_type="Dropless",
)
SIZES: dict[str, dict[str, Any]] = {
    "mixtral-8x7b": dict(
        _COMMON,
        vocab_size=32000,
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        max_position_embeddings=32768,
        mlp_ratio=3.5,
    ),
    "mixtral-8x22b": dict(
        _COMMON,
        vocab_size=32768,
        hidden_size=6144,
        num_layers=56,
        num_attention_heads=48,
        max_position_embeddings=65536,
        mlp_ratio=8 / 3,
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys."""
    return Decoder(from_settings(settings, numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``MixtralForCausalLM``."""
    return llama_names(spec, *mixture(spec, f"{LLAMA}.block_sparse_moe", projections=("w1", "w3", "w2")))


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec)


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    require(config, "router_jitter_noise", 0.0)
    settings = common_settings(config) | router_settings(config, experts=("num_local_experts",), normalises=True)
    if (window := config.get("sliding_window")) is not None:
        settings |= dict(use_sliding_window=True, sliding_window=window)
    return settings


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    architecture = "MixtralForCausalLM"
    require_router(settings, architecture)
    require_biases(settings, architecture, qkv=False, out=False)
    if not normalises(settings, True):
        key = "moe_layer_kwargs.normalize_expert_weights"
        raise inexpressible(key, False, architecture, f"model.{key} = True")
    window = settings.get("sliding_window") if settings.get("use_sliding_window") else None
    if window is not None and None in read_windows(settings):
        raise inexpressible(
            "layer_types", read_windows(settings), architecture, "the window in all layers or in none"
        )
    return dict(
        common_config(settings, "mixtral", architecture, own=("use_sliding_window", "num_experts")),
        num_local_experts=settings["num_experts"],
        num_experts_per_tok=settings["top_k"],
        sliding_window=window,
    )
