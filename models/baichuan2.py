"""Baichuan2 7B: Llama's block, its query, key and value in one matrix W_pack, and a head with normalised rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require, width_settings
from evocore.models.decoder.hugging_face_options import inexpressible, unsupported
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings, with_defaults
from evocore.models.decoder.weights import LLAMA, llama_names
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap
from evocore.nn.weight_rules import packed

SIZES: dict[str, dict[str, Any]] = {
    "baichuan2-7b": dict(
        vocab_size=125696,
        hidden_size=4096,
        num_layers=32,
        num_attention_heads=32,
        num_kv_attention_heads=32,
        max_position_embeddings=4096,
        layer_norm_epsilon=1e-6,
        rope_base=10000.0,
        qk_interleaved=False,
        **width_settings(4096, 11008),
    ),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys, with wq, wk and wv whatever ``enable_qkv_fusion`` says."""
    return Decoder(from_settings(_own(settings), numerics))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``BaichuanForCausalLM``, whose head normalises its rows itself."""
    place = packed(f"{LLAMA}.self_attn.W_pack.{{kind}}")
    return llama_names(spec, heads=place, normalised_head=False)


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec, packed=True, out="out_proj")


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    if "max_position_embeddings" not in config:
        raise unsupported("model_max_length", config.get("model_max_length"), "absent: only the 7B has rotary angles")
    return common_settings(config)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block; the model's code is in the released folders of Baichuan2."""
    settings, architecture = _own(settings), "BaichuanForCausalLM"
    config = common_config(settings, "baichuan", architecture)
    plain = {
        "num_kv_attention_heads": (None, settings["num_attention_heads"]),
        "rope_type": (None, "default"),
        "qkv_bias": (None, False),
        "o_bias": (None, False),
        "mlp_bias": (None, False),
        "norm_head": (True,),
    }
    for key, values in plain.items():
        if settings.get(key) not in values:
            raise inexpressible(key, settings.get(key), architecture, f"model.{key} = {values[-1]!r}")
    return dict(
        config,
        model_max_length=config["max_position_embeddings"],
        auto_map={
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
    )


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return with_defaults(settings, norm_head=True)
