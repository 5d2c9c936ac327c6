"""DeepSeek-V3: latent attention, and experts chosen by sigmoid scores within groups, balanced by a bias."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_mixture import normalises, require_router, router_options, router_settings
from evocore.models.decoder.hugging_face_options import inexpressible, require_biases, unsupported
from evocore.models.decoder.mixture_weights import mixture
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.prediction_weights import with_predictors
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import LLAMA, OURS, llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap
from evocore.nn.weight_rules import same

BIAS_RATE = 0.001
"""As it was trained (DeepSeek-AI, 2024, section 4.2)."""
SIZES: dict[str, dict[str, Any]] = {
    "deepseek-v3": dict(
        vocab_size=129280,
        hidden_size=7168,
        num_layers=61,
        num_attention_heads=128,
        max_position_embeddings=163840,
        layer_norm_epsilon=1e-6,
        rope_base=1e4,
        rope_type="yarn",
        rope_scaling_factor=40.0,
        rope_kwargs=dict(
            original_max_position_embeddings=4096, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0
        ),
        qk_interleaved=True,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
        **width_settings(7168, 18432),
        num_experts=256,
        top_k=8,
        moe_type="Dropless",
        moe_intermediate_size=2048,
        num_shared_experts=1,
        first_k_dense_replace=3,
        extra_pred_tokens=1,
        moe_layer_kwargs=dict(num_expert_groups=8, top_k_groups=4, routed_scaling_factor=2.5),
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; without ``bias_update_rate`` as DeepSeek-V3 was trained."""
    return Decoder(from_settings(_own(settings), numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``DeepseekV3ForCausalLM``; both have rotary pairs in the same places."""
    names = {"wq_a": "q_a_proj", "wkv_a": "kv_a_proj_with_mqa", "wkv_b": "kv_b_proj"}
    names["wq_b"] = "q_b_proj" if spec.latent is not None and spec.latent.q_rank else "q_proj"
    ours, theirs = f"{OURS}.attention", f"{LLAMA}.self_attn"
    names_of_blocks = llama_names(
        spec,
        *(same(f"{ours}.{mine}.{{kind}}", f"{theirs}.{its}.{{kind}}") for mine, its in names.items()),
        same(f"{ours}.q_norm.weight", f"{theirs}.q_a_layernorm.weight"),
        same(f"{ours}.kv_norm.weight", f"{theirs}.kv_a_layernorm.weight"),
        *mixture(spec, shared="shared_experts"),
    )
    return with_predictors(spec, names_of_blocks)


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    for key, value in (
        ("hidden_act", "silu"),
        ("scoring_func", "sigmoid"),
        ("topk_method", "noaux_tc"),
        ("moe_layer_freq", 1),
        ("quantization_config", None),
    ):
        require(config, key, value)
    if (shared := config.get("n_shared_experts")) is None:
        raise unsupported("n_shared_experts", shared, "one shared expert at least")
    biased = bool(config.get("attention_bias", False))
    sizes = {key: config[key] for key in ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")}
    return dict(
        common_settings(config),
        head_dim=sizes["qk_nope_head_dim"] + sizes["qk_rope_head_dim"],  # theirs is that of what is rotated
        num_kv_attention_heads=config["num_attention_heads"],
        qk_interleaved=bool(config.get("rope_interleave", True)),
        qkv_bias=biased,
        o_bias=biased,
        q_lora_rank=config.get("q_lora_rank"),
        **sizes,
        moe_intermediate_size=config["moe_intermediate_size"],
        num_shared_experts=shared,
        first_k_dense_replace=config.get("first_k_dense_replace") or 0,
        extra_pred_tokens=config.get("num_nextn_predict_layers") or 0,
        **router_settings(
            config,
            experts=("n_routed_experts",),
            normalises=bool(config.get("norm_topk_prob", True)),
            scoring_func="sigmoid",
            routed_scaling_factor=config.get("routed_scaling_factor", 1.0),
            num_expert_groups=config.get("n_group") or 1,
            top_k_groups=config.get("topk_group") or 1,
            bias_update_rate=BIAS_RATE,
        ),
    )


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block."""
    architecture, biased = "DeepseekV3ForCausalLM", settings.get("no_bias") is False
    settings = with_defaults(_own(settings), qkv_bias=biased, o_bias=biased)
    require_biases(settings, architecture, qkv=settings["qkv_bias"], out=settings["qkv_bias"])
    own = ("scoring_func", "routed_scaling_factor", "num_expert_groups", "bias_update_rate")
    require_router(settings, architecture, own=own)
    options = router_options(settings)
    if options["scoring_func"] != "sigmoid":
        key = "moe_layer_kwargs.scoring_func"
        raise inexpressible(key, options["scoring_func"], architecture, f"model.{key} = 'sigmoid'")
    if not settings.get("num_shared_experts"):
        raise inexpressible("num_shared_experts", 0, architecture, "one shared expert at least")
    kept = (
        "num_experts",
        "num_shared_experts",
        "moe_intermediate_size",
        "first_k_dense_replace",
        "kv_lora_rank",
        "extra_pred_tokens",
    )
    common = common_config(settings, "deepseek_v3", architecture, own=kept)
    sizes = {
        key: settings[key]
        for key in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    }
    return dict(
        common | dict(head_dim=settings["qk_rope_head_dim"]),
        **sizes,
        rope_interleave=bool(settings.get("qk_interleaved", True)),
        attention_bias=settings["qkv_bias"],
        moe_intermediate_size=settings.get("moe_intermediate_size") or common["intermediate_size"],
        n_routed_experts=settings["num_experts"],
        n_shared_experts=settings["num_shared_experts"],
        num_experts_per_tok=settings["top_k"],
        first_k_dense_replace=settings.get("first_k_dense_replace") or 0,
        norm_topk_prob=normalises(settings, True),
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        routed_scaling_factor=options["routed_scaling_factor"],
        n_group=options["num_expert_groups"],
        topk_group=options["top_k_groups"] or options["num_expert_groups"],
        num_nextn_predict_layers=settings.get("extra_pred_tokens") or 0,
    )


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = with_defaults(
        settings.get("moe_layer_kwargs") or {}, bias_update_rate=BIAS_RATE, scoring_func="sigmoid"
    )
    return {**settings, "moe_layer_kwargs": options}
