"""Qwen2-MoE: Qwen2's attention, many small experts whose weights are not scaled, and a gated shared expert."""

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
from evocore.models.decoder.hugging_face_options import (
    inexpressible,
    require_biases,
    unsupported,
    window_config,
    window_settings,
)
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.mixture_weights import mixture
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap

_COMMON: dict[str, Any] = dict(
    vocab_size=151936,
    layer_norm_epsilon=1e-6,
    rope_base=1e6,
    qk_interleaved=False,
    moe_type="Dropless",
)
SIZES: dict[str, dict[str, Any]] = {
    "qwen1.5-moe-a2.7b": dict(
        _COMMON,
        hidden_size=2048,
        num_layers=24,
        num_attention_heads=16,
        num_kv_attention_heads=16,
        max_position_embeddings=8192,
        **width_settings(2048, 5632),
        num_experts=60,
        top_k=4,
        moe_intermediate_size=1408,
        num_shared_experts=4,
    ),
    "qwen2-57b-a14b": dict(
        _COMMON,
        hidden_size=3584,
        num_layers=28,
        num_attention_heads=28,
        num_kv_attention_heads=4,
        max_position_embeddings=131072,
        **width_settings(3584, 18944),
        num_experts=64,
        top_k=8,
        moe_intermediate_size=2560,
        num_shared_experts=8,
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys."""
    return Decoder(from_settings(_own(settings), numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``Qwen2MoeForCausalLM``."""
    return llama_names(spec, *mixture(spec))


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec, ends=("embed_tokens", "output"))


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    width, shared = config["moe_intermediate_size"], config["shared_expert_intermediate_size"]
    if shared % width or shared == 0:
        raise unsupported("shared_expert_intermediate_size", shared, f"a multiple of moe_intermediate_size = {width}")
    layers, first = config["num_hidden_layers"], config.get("max_window_layers", 28)
    kinds = ["sliding_attention" if layer < first and layer % 2 == 0 else "full_attention" for layer in range(layers)]
    normalised = bool(config.get("norm_topk_prob", False))
    return dict(
        common_settings(config),
        qkv_bias=config.get("qkv_bias", True),
        num_shared_experts=shared // width,
        **router_settings(config, normalises=normalised, shared_expert_gate=True),
        **sparsity_settings(config),
        **window_settings({**config, "layer_types": config.get("layer_types") or kinds}, layers_before=28),
    )


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    settings, architecture = _own(settings), "Qwen2MoeForCausalLM"
    require_router(settings, architecture, own=("shared_expert_gate",))
    require_biases(settings, architecture, qkv=settings["qkv_bias"], out=False)
    shared, gated = settings.get("num_shared_experts") or 0, settings["moe_layer_kwargs"]["shared_expert_gate"]
    if not (shared and gated):
        raise inexpressible("num_shared_experts", shared, architecture, "one gated shared expert at least")
    own = (
        "use_sliding_window",
        "num_experts",
        "num_shared_experts",
        "moe_intermediate_size",
        "first_k_dense_replace",
        "mlp_only_layers",
        "decoder_sparse_step",
    )
    common = common_config(settings, "qwen2_moe", architecture, own=own)
    sparsity = sparsity_config(settings, common["intermediate_size"])
    return dict(
        **common,
        **sparsity,
        **window_config(settings),
        qkv_bias=settings["qkv_bias"],
        num_experts=settings["num_experts"],
        num_experts_per_tok=settings["top_k"],
        norm_topk_prob=normalises(settings, False),
        shared_expert_intermediate_size=shared * sparsity["moe_intermediate_size"],
    )


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = with_defaults(
        settings.get("moe_layer_kwargs") or {}, normalize_expert_weights=False, shared_expert_gate=True
    )
    return with_defaults(
        {**settings, "moe_layer_kwargs": options}, qkv_bias=not settings.get("no_bias"), o_bias=False
    )
