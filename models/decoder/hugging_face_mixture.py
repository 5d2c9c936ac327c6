"""Between ``config.json`` and the ``model`` block: mixtures of experts.

What ``transformers`` computes drops no token, so that a model that comes from there is of type "Dropless". Other
types differ in what they do with full experts and in nothing that is stored, and are written like this one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from evocore.models.decoder.hugging_face_options import inexpressible, unsupported


def router_settings(
    config: Mapping[str, Any], *, normalises: bool, experts: tuple[str, ...] = ("num_experts",), **options: Any
) -> dict[str, Any]:
    """How many experts there are, and how they are chosen and weighted.

    Args:
        experts: the keys that may say how many there are; versions of ``transformers`` differ.
        normalises: whether the weights of a token's experts are scaled to sum to one.
        options: further ones of ``moe_layer_kwargs``.

    Raises:
        UserError: the only weight of a token would be scaled to one.
    """
    top_k = config["num_experts_per_tok"]
    if top_k == 1 and normalises:
        raise unsupported("num_experts_per_tok", 1, "2 or more where weights are scaled to sum to one")
    return dict(
        num_experts=next(config[key] for key in experts if key in config),
        top_k=top_k,
        moe_type="Dropless",
        moe_layer_kwargs=dict(normalize_expert_weights=normalises, **options),
    )


def sparsity_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers have experts, and how wide these are, as Qwen2-MoE and Qwen3-MoE say it."""
    settings: dict[str, Any] = {"moe_intermediate_size": config["moe_intermediate_size"]}
    if config.get("decoder_sparse_step", 1) != 1:
        settings["decoder_sparse_step"] = config["decoder_sparse_step"]
    if config.get("mlp_only_layers"):
        settings["mlp_only_layers"] = list(config["mlp_only_layers"])
    return settings


def sparsity_config(settings: Mapping[str, Any], feed_forward: int) -> dict[str, Any]:
    """The reverse.

    Args:
        feed_forward: width of the dense layers.
    """
    listed = {*range(settings.get("first_k_dense_replace") or 0), *(settings.get("mlp_only_layers") or ())}
    return dict(
        moe_intermediate_size=settings.get("moe_intermediate_size") or feed_forward,
        decoder_sparse_step=settings.get("decoder_sparse_step") or 1,
        mlp_only_layers=sorted(listed),
    )


def normalises(settings: Mapping[str, Any], by_default: bool) -> bool:
    """Whether the weights of a token's experts are scaled to sum to one."""
    own = router_options(settings).get("normalize_expert_weights")
    return by_default if own is None else bool(own)


def router_options(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """``moe_layer_kwargs``."""
    found: Mapping[str, Any] = settings.get("moe_layer_kwargs") or {}
    return found


NEUTRAL_ROUTER: dict[str, tuple[Any, ...]] = {
    "scoring_func": (None, "softmax"),
    "routed_scaling_factor": (None, 1.0),
    "num_expert_groups": (None, 1),
    "bias_update_rate": (None,),
    "shared_expert_gate": (None, False),
}
"""Options of ``moe_layer_kwargs`` that only some classes of ``transformers`` have, and what the others do."""


def require_router(settings: Mapping[str, Any], architecture: str, *, own: Collection[str] = ()) -> None:
    """Refuse a router that a class of ``transformers`` does not have.

    Args:
        own: keys of ``NEUTRAL_ROUTER`` that it has.

    Raises:
        UserError: another one is not neutral.
    """
    options = router_options(settings)
    for key, neutral in NEUTRAL_ROUTER.items():
        if key not in own and options.get(key) not in neutral:
            name = f"moe_layer_kwargs.{key}"
            raise inexpressible(name, options[key], architecture, f"model.{name} = {neutral[-1]!r}")
    if settings.get("num_experts", 1) == 1:
        raise inexpressible("num_experts", 1, architecture, "two experts at least")
