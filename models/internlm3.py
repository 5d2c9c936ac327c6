"""InternLM3: Llama's block with two key-value heads, heads of a size of their own, and biases as options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import inexpressible
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap

SIZES: dict[str, dict[str, Any]] = {
    "internlm3-8b": dict(
        vocab_size=128512,
        hidden_size=4096,
        num_layers=48,
        num_attention_heads=32,
        num_kv_attention_heads=2,
        head_dim=128,
        max_position_embeddings=32768,
        layer_norm_epsilon=1e-5,
        rope_base=5e7,
        rope_type="dynamic",
        rope_scaling_factor=6.0,
        qk_interleaved=False,
        **width_settings(4096, 10240),
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys, with wq, wk and wv whatever ``enable_qkv_fusion`` says."""
    return Decoder(from_settings(settings, numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``InternLM3ForCausalLM``."""
    return llama_names(spec)


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec)


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``: ``qkv_bias``, and ``bias`` for all other projections."""
    require(config, "hidden_act", "silu")
    biased = bool(config.get("bias", config.get("mlp_bias", False)))
    qkv_biased = bool(config.get("qkv_bias", config.get("attention_bias", False)))
    return dict(common_settings(config), qkv_bias=qkv_biased, o_bias=biased, mlp_bias=biased)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    architecture = "InternLM3ForCausalLM"
    biased = settings.get("no_bias") is False
    settings = with_defaults(settings, qkv_bias=biased, o_bias=biased, mlp_bias=False)
    if settings["o_bias"] != settings["mlp_bias"]:
        raise inexpressible("o_bias", settings["o_bias"], architecture, "model.o_bias and model.mlp_bias alike")
    return dict(
        common_config(settings, "internlm3", architecture), qkv_bias=settings["qkv_bias"], bias=settings["o_bias"]
    )
