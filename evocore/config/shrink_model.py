"""A small model with the proportions of a large one, such that a layout divides it."""

from __future__ import annotations

from math import ceil, lcm
from typing import Any

from evocore.config.checks_parallel import expert_size
from evocore.config.schema import Config

LAYERS, KV_HEADS, HEAD, VOCABULARY, EXPERTS, GROUPS, RANK = 2, 2, 16, 512, 4, 2, 16


def model_sizes(config: Config, world_size: int, *, sequence: int, vocabulary: bool) -> dict[str, Any]:
    """Keys of the block ``model``, and of what counts its layers, by dotted key.

    Args:
        config: with the parallel sizes that it is going to have.
        world_size: processes.
        sequence: tokens of a sample.
        vocabulary: whether it may have fewer words.
    """
    found = _heads(config) | _layers(config, sequence) | _experts(config, world_size)
    model, parallel = config.model, config.parallel
    if vocabulary:
        divisors = parallel.tensor.size, parallel.weight.size if parallel.tensor.mode == "isp" else 1
        found["vocab_size"] = _at_most(model.vocab_size, VOCABULARY, lcm(*divisors))
    if model.moe_intermediate_size is not None:
        width = model.moe_intermediate_size * found["hidden_size"] // model.hidden_size
        found["moe_intermediate_size"] = _at_most(model.moe_intermediate_size, width, lcm(8, parallel.tensor.size))
    layers = found["num_layers"]
    moved = min(config.cpu_offloading.num_layers, layers)
    return {f"model.{key}": value for key, value in found.items()} | {"cpu_offloading.num_layers": moved}


def _heads(config: Config) -> dict[str, Any]:
    """Heads in their proportion to key-value heads, and the width in its proportion to the heads."""
    model, parallel, two = config.model, config.parallel, config.parallel.sequence_2D
    shared = two.head_size if two.enable else parallel.tensor.size
    heads, kv_heads = model.num_attention_heads, model.num_kv_attention_heads
    found: dict[str, Any] = {"head_dim": min(model.head_dim, HEAD)}
    if model.kv_lora_rank is not None:
        for key in ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"):
            value = getattr(model, key)
            found[key] = None if value is None else min(value, RANK)
        found["head_dim"] = (found["qk_nope_head_dim"] or 0) + (found["qk_rope_head_dim"] or 0)
    head, multiple = found["head_dim"], lcm(8, parallel.tensor.size)
    if heads % kv_heads == 0:
        each, numbers = heads // kv_heads, range(min(KV_HEADS, kv_heads), kv_heads + 1)
        fit = [few for few in numbers if few * each % shared == 0 and (few % shared == 0 or shared % few == 0)]
        whole = heads * model.head_dim * multiple
        # Better a width that needs no rounding.
        exact = [few for few in fit if few * each * head * model.hidden_size % whole == 0]
        if fit:
            kv_heads = (exact or fit)[0]
            heads = kv_heads * each
    found |= {"num_attention_heads": heads, "num_kv_attention_heads": kv_heads}
    scale = model.hidden_size / (model.num_attention_heads * model.head_dim)
    hidden = ceil(heads * head * scale / multiple) * multiple
    while hidden % heads and hidden // heads == head:  # which would be taken for a mistake
        hidden += multiple
    found["hidden_size"] = min(model.hidden_size, hidden)
    found["multiple_of"] = min(model.multiple_of, lcm(16, parallel.tensor.size))
    return found


def _layers(config: Config, sequence: int) -> dict[str, Any]:
    """As few layers as there are stages, and enough for one of each kind."""
    model = config.model
    dense = min(model.first_k_dense_replace or 0, 1)
    least = max(LAYERS, config.parallel.pipeline.size * model.num_chunks, dense + 1, model.decoder_sparse_step or 1)
    layers = min(model.num_layers, least)
    found: dict[str, Any] = {"num_layers": layers}
    if model.first_k_dense_replace:
        found["first_k_dense_replace"] = dense
    if model.mlp_only_layers:
        kept = [layer for layer in model.mlp_only_layers if layer < layers]
        found["mlp_only_layers"] = kept if len(kept) < layers else kept[1:]
    if model.checkpoint > 0:
        found["checkpoint"] = max(model.checkpoint, 1 / layers)
    if model.sliding_window is not None:
        found["sliding_window"] = min(model.sliding_window, max(1, sequence // 4))
    if model.max_window_layers is not None:
        every = model.max_window_layers >= model.num_layers
        found["max_window_layers"] = layers if every else min(model.max_window_layers, layers - 1)
    if model.layer_types is not None:
        kinds = list(model.layer_types[:layers])
        kinds[-1] = next((kind for kind in model.layer_types if kind not in kinds), kinds[-1])
        found["layer_types"] = kinds
    return found


def _experts(config: Config, world_size: int) -> dict[str, Any]:
    model, parallel, options = config.model, config.parallel, config.model.moe_layer_kwargs
    if model.num_experts == 1:
        return {}
    groups = min(options.num_expert_groups, GROUPS)
    ranks = expert_size(config, world_size // parallel.pipeline.size)
    experts = _at_most(model.num_experts, max(EXPERTS * groups, ranks), lcm(ranks, groups))
    found: dict[str, Any] = {"num_experts": experts, "top_k": min(model.top_k, 2)}
    found["num_shared_experts"] = min(model.num_shared_experts, 2)
    if options.num_expert_groups > 1:
        found["moe_layer_kwargs.num_expert_groups"] = groups
        found["moe_layer_kwargs.top_k_groups"] = min(options.top_k_groups or groups, groups - 1)
    return found


def _at_most(value: int, target: int, multiple: int) -> int:
    """``target``, rounded up to a multiple; never more than what there is."""
    return min(value, ceil(target / multiple) * multiple)
