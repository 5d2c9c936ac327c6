"""Between the ``config.json`` of ``transformers`` and the ``model`` block of a config: what most families share."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from evocore.models.decoder.hugging_face_options import require_neutral, rope_config, rope_settings, unsupported
from evocore.models.decoder.spec import round_up


def common_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``model`` for what a decoder's ``config.json`` says in the words of Llama.

    Raises:
        UserError: it asks for what the decoder does not do.
    """
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    settings = dict(
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        num_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_kv_attention_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        layer_norm_epsilon=config.get("rms_norm_eps", 1e-6),
        max_position_embeddings=config.get("max_position_embeddings", 2048),
        qk_interleaved=False,
        **width_settings(hidden, config["intermediate_size"]),
        **rope_settings(config),
    )
    if config.get("tie_word_embeddings"):
        settings["tie_word_embeddings"] = True
    return settings


def common_config(
    settings: Mapping[str, Any], model_type: str, architecture: str, *, own: Collection[str] = ()
) -> dict[str, Any]:
    """The reverse: a ``config.json`` for a ``model`` block.

    Args:
        own: options that this class has and most others lack, of ``hugging_face_options.NEUTRAL``.

    Raises:
        UserError: the block asks for another of these.
    """
    require_neutral(settings, architecture, own)
    hidden, heads = settings["hidden_size"], settings["num_attention_heads"]
    return dict(
        architectures=[architecture],
        model_type=model_type,
        vocab_size=settings["vocab_size"],
        hidden_size=hidden,
        intermediate_size=round_up(int(hidden * settings["mlp_ratio"]), settings.get("multiple_of") or 256),
        num_hidden_layers=settings["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=settings.get("num_kv_attention_heads") or heads,
        head_dim=settings.get("head_dim") or hidden // heads,
        hidden_act="silu",
        rms_norm_eps=settings.get("layer_norm_epsilon", 1e-5),
        max_position_embeddings=settings.get("max_position_embeddings", 2048),
        initializer_range=settings.get("embedding_init_std", 0.02),
        tie_word_embeddings=bool(settings.get("tie_word_embeddings", False)),
        **rope_config(settings),
    )


def width_settings(hidden: int, width: int) -> dict[str, Any]:
    """``mlp_ratio`` and ``multiple_of`` that give exactly ``width``."""
    multiple = next(multiple for multiple in (256, 128, 64, 32, 16, 8, 4, 2, 1) if width % multiple == 0)
    ratio = width / hidden
    if round_up(int(hidden * ratio), multiple) != width:  # int() rounded down by one
        ratio = (width + 0.5) / hidden
    assert round_up(int(hidden * ratio), multiple) == width, (hidden, width)
    return {"mlp_ratio": ratio, "multiple_of": multiple}


def require(config: Mapping[str, Any], key: str, *values: Any) -> None:
    """Refuse a ``config.json`` with another value of ``key`` than these; an absent one is the first.

    Raises:
        UserError: it has another.
    """
    if (value := config.get(key, values[0])) not in values:
        raise unsupported(key, value, " or ".join(map(repr, values)))
