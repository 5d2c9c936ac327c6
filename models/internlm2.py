"""InternLM2: grouped queries with one fused qkv weight, no biases, and a head whose rows may be normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.hugging_face import common_config, common_settings, require
from evocore.models.decoder.internevo import internevo_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings
from evocore.models.decoder.weights import OURS, attention, ends, feed_forward, head_options
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap
from evocore.nn.weight_rules import grouped, same

_COMMON: dict[str, Any] = dict(
    vocab_size=92544,
    max_position_embeddings=32768,
    layer_norm_epsilon=1e-5,
    rope_base=1e6,
    qk_interleaved=False,
    no_bias=True,
    num_kv_attention_heads=8,
)
SIZES: dict[str, dict[str, Any]] = {
    "internlm2-1.8b": dict(_COMMON, hidden_size=2048, num_layers=24, num_attention_heads=16, mlp_ratio=4.0),
    "internlm2-7b": dict(_COMMON, hidden_size=4096, num_layers=32, num_attention_heads=32, mlp_ratio=3.5),
    "internlm2-20b": dict(_COMMON, hidden_size=6144, num_layers=48, num_attention_heads=48, mlp_ratio=8 / 3),
}


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``enable_qkv_fusion=False`` separates wq, wk and wv."""
    return Decoder(from_settings(settings, numerics, fused_qkv=bool(settings.get("enable_qkv_fusion", True))))


def weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of ``InternLM2ForCausalLM``, whose head does not normalise its rows."""
    layer = "model.layers.{layer}"
    return WeightMap(
        (
            *ends(spec, "model.tok_embeddings", "model.norm", "output"),
            *attention(spec, grouped(f"{layer}.attention.wqkv.{{kind}}")),
            same(f"{OURS}.attention.wo.{{kind}}", f"{layer}.attention.wo.{{kind}}"),
            *(same(f"{OURS}.{norm}.weight", f"{layer}.{norm}.weight") for norm in ("attention_norm", "ffn_norm")),
            *feed_forward("feed_forward", f"{layer}.feed_forward", "w1", "w3", "w2"),
        ),
        **head_options(spec, "model.tok_embeddings", "output"),
    )


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internevo_names(spec)


def from_hugging_face(config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``model`` block for a ``config.json``."""
    require(config, "hidden_act", "silu")
    biased = bool(config.get("bias", False))
    return dict(common_settings(config), no_bias=not biased)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` for a ``model`` block; the model's code is in the released folders of InternLM2."""
    return dict(
        common_config(settings, "internlm2", "InternLM2ForCausalLM"),
        bias=settings.get("no_bias") is False,
        auto_map={
            "AutoConfig": "configuration_internlm2.InternLM2Config",
            "AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM",
            "AutoModel": "modeling_internlm2.InternLM2ForCausalLM",
        },
    )
