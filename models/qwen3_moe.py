"""Qwen3-MoE: Qwen3's attention and many small experts, none of them shared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_mixture import (
    normalises,
    require_router,
    router_settings,
    sparsity_config,
    sparsity_settings,
)
from evocore.models.decoder.hugging_face_options import inexpressible, require_biases
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.mixture_weights import mixture
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, read_windows, with_defaults
from evocore.models.decoder.weights import head_norms, llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap


def _size(hidden: int, layers: int, heads: int, width: int, expert: int) -> dict[str, Any]:
    return dict(
        vocab_size=151936,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_attention_heads=4,
        head_dim=128,
        max_position_embeddings=40960,
        layer_norm_epsilon=1e-6,
        rope_base=1e6,
        qk_interleaved=False,
        **width_settings(hidden, width),
        num_experts=128,
        top_k=8,
        moe_type="Dropless",
        moe_intermediate_size=expert,
    )


SIZES: dict[str, dict[str, Any]] = {
    "qwen3-30b-a3b": _size(2048, 48, 32, 6144, 768),
    "qwen3-235b-a22b": _size(4096, 94, 64, 12288, 1536),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys."""
    return Decoder(from_settings(settings, numerics, head_norms=True))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``Qwen3MoeForCausalLM``."""
    return llama_names(spec, *head_norms(spec), *mixture(spec))


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec, ends=("embed_tokens", "output"))


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    biased = bool(config.get("attention_bias", False))
    settings = dict(
        common_settings(config),
        qkv_bias=biased,
        o_bias=biased,
        **router_settings(
            config, experts=("num_experts", "num_local_experts"), normalises=bool(config.get("norm_topk_prob", False))
        ),
        **sparsity_settings(config),
    )
    if config.get("use_sliding_window") and config.get("sliding_window") is not None:
        settings |= dict(use_sliding_window=True, sliding_window=config["sliding_window"])
    return settings


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    architecture, biased = "Qwen3MoeForCausalLM", settings.get("no_bias") is False
    settings = with_defaults(settings, qkv_bias=biased, o_bias=biased)
    require_router(settings, architecture)
    require_biases(settings, architecture, qkv=settings["qkv_bias"], out=settings["qkv_bias"])
    windows = bool(settings.get("use_sliding_window"))
    if windows and None in read_windows(settings):
        raise inexpressible(
            "layer_types", read_windows(settings), architecture, "the window in all layers or in none"
        )
    own = (
        "use_sliding_window",
        "num_experts",
        "moe_intermediate_size",
        "first_k_dense_replace",
        "mlp_only_layers",
        "decoder_sparse_step",
    )
    common = common_config(settings, "qwen3_moe", architecture, own=own)
    return dict(
        **common,
        **sparsity_config(settings, common["intermediate_size"]),
        attention_bias=settings["qkv_bias"],
        use_sliding_window=windows,
        sliding_window=settings.get("sliding_window") if windows else None,
        num_experts=settings["num_experts"],
        num_experts_per_tok=settings["top_k"],
        norm_topk_prob=normalises(settings, True),
    )
