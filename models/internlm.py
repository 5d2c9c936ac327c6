"""InternLM: separate wq, wk and wv, with biases there and on the attention's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import inexpressible
from evocore.models.decoder.internevo import internlm_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap

_COMMON: dict[str, Any] = dict(vocab_size=103168, layer_norm_epsilon=1e-6, rope_base=10000.0, qk_interleaved=False)
SIZES: dict[str, dict[str, Any]] = {
    "internlm-7b": dict(
        _COMMON,
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_kv_attention_heads=32,
        max_position_embeddings=2048,
        **width_settings(4096, 11008),
    ),
    "internlm-20b": dict(
        _COMMON,
        hidden_size=5120,
        num_layers=60,
        num_attention_heads=40,
        num_kv_attention_heads=40,
        max_position_embeddings=4096,
        no_bias=True,
        **width_settings(5120, 13824),
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``no_bias=True`` leaves the biases out."""
    return Decoder(from_settings(_own(settings), numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``InternLMForCausalLM``."""
    return llama_names(spec)


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internlm_names(spec)


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    rotary = config.get("rotary") or {}
    told = dict(config, rope_theta=rotary.get("base", config.get("rope_theta", 10000.0)))
    if rotary.get("type") == "dynamic":
        told["rope_scaling"] = {"rope_type": "dynamic", "factor": rotary.get("scaling_factor", 1.0)}
    return dict(common_settings(told), no_bias=not config.get("bias", True))


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block; the model's code is in the released folders of InternLM."""
    settings, architecture = _own(settings), "InternLMForCausalLM"
    config = common_config(settings, "internlm", architecture)
    rope = config["rope_parameters"]
    rotary: dict[str, Any] = {"base": rope["rope_theta"], "type": "origin"}
    if rope["rope_type"] == "dynamic":
        rotary |= {"type": "dynamic", "scaling_factor": rope["factor"]}
    elif rope["rope_type"] != "default":
        raise inexpressible("rope_type", rope["rope_type"], architecture, "model.rope_type = 'dynamic' or none")
    for key, others in (
        ("o_bias", settings["qkv_bias"]),
        ("num_kv_attention_heads", settings["num_attention_heads"]),
    ):
        if settings.get(key) not in (None, others):
            raise inexpressible(key, settings[key], architecture, f"model.{key} = {others!r}, as of the queries")
    return dict(
        config,
        bias=bool(settings["qkv_bias"]),
        rotary=rotary,
        auto_map={
            "AutoConfig": "configuration_internlm.InternLMConfig",
            "AutoModelForCausalLM": "modeling_internlm.InternLMForCausalLM",
            "AutoModel": "modeling_internlm.InternLMForCausalLM",
        },
    )


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    biased = not settings.get("no_bias")
    return with_defaults(settings, qkv_bias=biased, o_bias=biased)
