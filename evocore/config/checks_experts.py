"""Launch constraints on mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from evocore.config.checks_parallel import expert_tensor_size
from evocore.config.schema import Config
from evocore.errors import UserError

Problems = Iterator[UserError]


def _groups(config: Config) -> Problems:
    """Whether routing limited to groups of experts finds enough of them."""
    model, options = config.model, config.model.moe_layer_kwargs
    groups, kept = options.num_expert_groups, options.top_k_groups or options.num_expert_groups
    if model.num_experts % groups:
        yield UserError(
            f"model.num_experts={model.num_experts} is not divisible by "
            f"model.moe_layer_kwargs.num_expert_groups={groups}",
            f"a multiple of {groups}",
            "change one of the two",
        )
    elif kept > groups or model.top_k > kept * (model.num_experts // groups):
        yield UserError(
            f"model.moe_layer_kwargs.top_k_groups={kept} of {groups} groups of {model.num_experts // groups} "
            f"experts, with model.top_k={model.top_k}",
            "at most all groups, with top_k experts in those that a token may use",
            "change model.moe_layer_kwargs.top_k_groups",
        )


def _noise(config: Config) -> Problems:
    options = config.model.moe_layer_kwargs
    limits = dict(
        scoring_func=options.scoring_func not in (None, "softmax"),
        num_expert_groups=options.num_expert_groups > 1,
        bias_update_rate=options.bias_update_rate is not None,
    )
    for key, limited in limits.items():
        if options.noisy_gate_policy == "RSample" and limited:
            yield UserError(
                f"model.moe_layer_kwargs.noisy_gate_policy='RSample' with {key}={getattr(options, key)!r}",
                "softmax scores of all experts, from which experts are sampled",
                f"remove model.moe_layer_kwargs.{key}, or set noisy_gate_policy=None",
            )


def _layers(config: Config) -> Problems:
    model, dense = config.model, config.model.first_k_dense_replace or 0
    if beyond := [layer for layer in model.mlp_only_layers or () if layer >= model.num_layers]:
        yield UserError(
            f"model.mlp_only_layers names layer {beyond[0]} of model.num_layers={model.num_layers}",
            f"layers from 0 to {model.num_layers - 1}",
            "correct model.mlp_only_layers",
        )
    if dense > model.num_layers:
        yield UserError(
            f"model.first_k_dense_replace={dense} is more than model.num_layers={model.num_layers}",
            f"at most {model.num_layers}",
            "lower model.first_k_dense_replace",
        )


def _one_loss(config: Config) -> Problems:
    stages = config.parallel.pipeline.size
    if stages > 1 and not config.model.moe_layer_kwargs.aux_loss_by_layer:
        yield UserError(
            f"model.moe_layer_kwargs.aux_loss_by_layer=False with parallel.pipeline.size={stages}",
            "all layers in one stage, as the loss depends on what all of them choose",
            "--set model.moe_layer_kwargs.aux_loss_by_layer=True",
        )


def _tensor(config: Config) -> Problems:
    """Whether tensor ranks find equal parts of each expert, or of the tokens where experts are not split."""
    model, parallel = config.model, config.parallel
    width = model.moe_intermediate_size
    if width is None:
        width = -(-int(model.hidden_size * model.mlp_ratio) // model.multiple_of) * model.multiple_of
    if width % expert_tensor_size(config):
        yield UserError(
            f"the width of an expert, {width}, is not divisible by parallel.tensor.size={parallel.tensor.size}",
            f"a multiple of {parallel.tensor.size}",
            "change model.moe_intermediate_size or model.mlp_ratio, or set parallel.expert.no_tp=True",
        )
    spread = parallel.expert.no_tp and parallel.tensor.mode == "mtp"
    if spread and config.data.packed_length % parallel.tensor.size:
        yield UserError(
            f"data.packed_length={config.data.packed_length} is not divisible by "
            f"parallel.tensor.size={parallel.tensor.size} with parallel.expert.no_tp=True",
            "as many tokens for each tensor rank to send to the experts",
            "change data.packed_length, or set parallel.expert.no_tp=False",
        )


def expert_problems(config: Config) -> Problems:
    """Every violation by a mixture of experts; none by a dense model."""
    if config.model.num_experts > 1:
        for rule in _RULES:
            yield from rule(config)


_RULES: tuple[Callable[[Config], Problems], ...] = (_groups, _noise, _layers, _one_loss, _tensor)
