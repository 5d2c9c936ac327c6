"""Between ``config.json`` and the ``model`` block: rotary scaling, windows, and options that a class may not have."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from evocore.errors import UserError

ROPE_KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {},
    "dynamic": {},
    "llama3": {"original_max_position_embeddings": None, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "yarn": dict.fromkeys(
        (
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        )
    ),
}
"""``rope_type`` -> the options that it has beside the factor, and what is written where one was left out."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_unit_offset": (None, False),
    "use_swiglu": (None, True),
    "use_sliding_window": (None, False),
    "query_pre_attn_scalar": (None,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "num_experts": (None, 1),
    "num_shared_experts": (None, 0),
    "moe_intermediate_size": (None,),
    "first_k_dense_replace": (None, 0),
    "mlp_only_layers": (None, []),
    "decoder_sparse_step": (None, 1),
    "kv_lora_rank": (None,),
    "extra_pred_tokens": (None, 0),
}
"""Options that only some classes of ``transformers`` have, and what the others do."""


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of ``rope_parameters``, or of ``rope_theta`` and ``rope_scaling`` as older versions wrote them.

    Raises:
        UserError: it is of a kind that the decoder does not have.
    """
    rope = dict(config.get("rope_scaling") or config.get("rope_parameters") or {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ROPE_KINDS:
        raise unsupported("rope_parameters.rope_type", kind, " or ".join(map(repr, ROPE_KINDS)))
    part = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if part not in (1, None):
        raise unsupported("partial_rotary_factor", part, "1.0")
    settings: dict[str, Any] = {"rope_base": rope.get("rope_theta", config.get("rope_theta", 10000.0))}
    if kind == "default":
        return settings
    trained = config.get("original_max_position_embeddings", rope.get("original_max_position_embeddings"))
    if trained is not None:
        rope["original_max_position_embeddings"] = trained
    factor = rope.get("factor")
    if factor is None:  # as DeepSeek writes yarn
        factor = config["max_position_embeddings"] / (trained or config["max_position_embeddings"])
    options = {key: rope[key] for key in ROPE_KINDS[kind] if rope.get(key) is not None}
    settings |= {"rope_type": kind, "rope_scaling_factor": float(factor)}
    return settings | ({"rope_kwargs": options} if options else {})


def rope_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse, in the words of both versions."""
    base = float(settings.get("rope_base", 10000))
    kind = "dynamic" if settings.get("use_dynamic_ntk_rope") else settings.get("rope_type") or "default"
    if kind == "default":
        return {"rope_theta": base, "rope_parameters": {"rope_type": kind, "rope_theta": base}}
    given = settings.get("rope_kwargs") or {}
    options = {key: absent if given.get(key) is None else given[key] for key, absent in ROPE_KINDS[kind].items()}
    if "original_max_position_embeddings" in options:
        options["original_max_position_embeddings"] = options["original_max_position_embeddings"] or settings.get(
            "max_position_embeddings", 2048
        )
    rope = {"rope_type": kind, "factor": float(settings.get("rope_scaling_factor", 1.0))}
    rope |= {key: value for key, value in options.items() if value is not None}
    return {"rope_theta": base, "rope_parameters": {**rope, "rope_theta": base}, "rope_scaling": rope}


def window_settings(config: Mapping[str, Any], layers_before: int) -> dict[str, Any]:
    """Of ``use_sliding_window``, ``sliding_window``, ``max_window_layers`` and ``layer_types`` (Qwen).

    Args:
        layers_before: ``max_window_layers`` where the file does not say.
    """
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return {}
    kinds = config.get("layer_types")
    first = config.get("max_window_layers", layers_before)
    if kinds is not None and kinds != kinds_from(first, len(kinds)):
        how: dict[str, Any] = {"layer_types": list(kinds)}
    else:
        how = {"max_window_layers": first}
    return {"use_sliding_window": True, "sliding_window": config["sliding_window"], **how}


def window_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse."""
    layers, window = settings["num_layers"], settings.get("sliding_window")
    first = settings.get("max_window_layers") or 0
    if not settings.get("use_sliding_window"):
        return {"use_sliding_window": False, "sliding_window": window, "max_window_layers": first}
    kinds = settings.get("layer_types") or kinds_from(first, layers)
    return {
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": first,
        "layer_types": list(kinds),
    }


def require_neutral(settings: Mapping[str, Any], architecture: str, own: Collection[str]) -> None:
    """Refuse options that a class of ``transformers`` does not have.

    Args:
        own: keys of ``NEUTRAL`` that it has.

    Raises:
        UserError: another one is not neutral.
    """
    for key, neutral in NEUTRAL.items():
        if key not in own and settings.get(key) not in neutral:
            raise inexpressible(key, settings[key], architecture, f"model.{key} = {neutral[-1]!r}")


def require_biases(settings: Mapping[str, Any], architecture: str, *, qkv: bool, out: bool) -> None:
    """Refuse biases of attention other than these, and any of the MLP.

    Raises:
        UserError: one is there that should not, or the other way round.
    """
    biased = settings.get("no_bias") is False
    for key, by_default, expected in (("qkv_bias", biased, qkv), ("o_bias", biased, out), ("mlp_bias", False, False)):
        own = by_default if settings.get(key) is None else bool(settings[key])
        if own != expected:
            raise inexpressible(key, own, architecture, f"model.{key} = {expected}")


def unsupported(key: str, value: Any, expected: str) -> UserError:
    """The error for a value in a ``config.json`` that the decoder cannot have."""
    return UserError(
        f"config.json has {key} = {value!r}, which this family does not support",
        f"{key} = {expected}",
        "use a model whose config.json has it; `evocore models` lists the families",
    )


def kinds_from(first: int, layers: int) -> list[str]:
    """``layer_types`` where all layers from ``first`` on have the window."""
    return ["sliding_attention" if layer >= first else "full_attention" for layer in range(layers)]


def inexpressible(key: str, value: Any, architecture: str, expected: str) -> UserError:
    """The error for a value in a ``model`` block that a class of ``transformers`` cannot have."""
    return UserError(
        f"model.{key} = {value!r}: {architecture} of transformers has no such option",
        expected,
        "export a model of a family that has it (`evocore models` lists the families)",
    )
