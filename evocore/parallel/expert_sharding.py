"""Cuts the experts of a model that is still on the meta device down to what one rank holds of them.

Goes by types of layers. As in ``evocore.parallel.sharding``, nothing here needs another process.
"""

from __future__ import annotations

import torch
from torch import nn

from evocore.nn.experts import ExpertLinear
from evocore.nn.router import Scorer
from evocore.parallel.placement import Box, Placement, even_range
from evocore.parallel.sharding import Part, Sharing


def shard_experts(model: nn.Module, expert: Part, tensor: Part, weight: Part) -> dict[str, Sharing]:
    """Resize the stacks of experts.

    Args:
        expert: this rank's place among those that share the experts: each has experts that are neighbours.
        tensor: among those that share each expert: each has features that are neighbours.
        weight: among those that share the weights of experts in isp: each has a flat shard.

    Returns:
        One entry per weight of experts, by its name.
    """
    found = {}
    for name, layer in model.named_modules():
        if isinstance(layer, ExpertLinear):
            whole, offsets, sizes = layer.shape, [0] * len(layer.shape), list(layer.shape)
            for dimension, part in ((0, expert), (layer.feature, tensor)):
                assert whole[dimension] % part.parts == 0, (name, whole, part)  # the config was checked
                sizes[dimension] = whole[dimension] // part.parts
                offsets[dimension] = part.index * sizes[dimension]
            layer.shape = tuple(sizes)
            placement = Placement(whole, layer.shape, (Box(tuple(offsets), layer.shape),))
            if weight.parts > 1:
                placement = placement.elements(*even_range(placement.numel, weight.parts, weight.index))
            local = torch.empty(placement.local_shape, dtype=layer.weight.dtype, device=layer.weight.device)
            layer.weight = nn.Parameter(local)
            found[f"{name}.weight"] = Sharing(placement, "expert_data", delivered=weight.parts > 1)
    return found


def scorers(model: nn.Module) -> set[str]:
    """Names of the weights of routers: too small to be divided, and in a dtype of their own."""
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Scorer)}
