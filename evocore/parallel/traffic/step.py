"""Everything that one rank exchanges in one step, mode by mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from evocore.config.schema_parallel import Weight
from evocore.parallel.buckets import Bucket
from evocore.parallel.layout import Layout
from evocore.parallel.sharding import Sharing
from evocore.parallel.traffic.experts import Routed, expert_weights, routed_experts
from evocore.parallel.traffic.fully_sharded import fully_sharded, gathered_units
from evocore.parallel.traffic.isp import attention_exchanges, weight_parallel
from evocore.parallel.traffic.ledger import Exchange, Ledger
from evocore.parallel.traffic.pipeline import pipeline, tied_ends
from evocore.parallel.traffic.tensor import tensor_parallel
from evocore.parallel.traffic.uses import Uses

FACTS = 4 * torch.int64.itemsize
"""Bytes of what all ranks tell one another before a step: targets, tokens, whether to stop, whether to save."""
COLUMNS_OF_METER = 3
COLUMNS_OF_ROUTER = 4
"""Of a router's record, besides two numbers for each expert."""


@dataclass(frozen=True)
class Mixture:
    """What a mixture of experts adds to a step.

    Attributes:
        layers: of the whole model, with what predicts further tokens.
        experts: of each of its mixtures.
        auxiliary_losses: whether routers have any.
        routed: of each layer with experts on this rank, by number; an even spread if left out.
    """

    layers: int
    experts: int
    auxiliary_losses: bool = False
    routed: Mapping[int, Routed] | None = None


@dataclass(frozen=True)
class Step:
    """What the traffic of a step depends on besides the model and its layout.

    Attributes:
        micro_batches: M, of this rank.
        tokens: T, of a micro-batch of the whole tensor group.
        weight: settings of weight parallelism.
        communicate: dtype in which gradients travel.
        types: dataset types that the metrics are told apart by.
        keeps_attention: recomputed blocks do not repeat attention itself.
        mixture: None for a dense model.
        further: whether the model predicts tokens beyond the next one.
    """

    micro_batches: int
    tokens: int
    weight: Weight = field(default_factory=Weight)
    communicate: torch.dtype = torch.float32
    types: int = 0
    keeps_attention: bool = False
    mixture: Mixture | None = None
    further: bool = False


def traffic(
    model: nn.Module, layout: Layout, sharings: Mapping[str, Sharing], buckets: Sequence[Bucket], step: Step
) -> list[Exchange]:
    """Everything that a rank exchanges in one step in which all gradients are finite.

    Args:
        model: cut to the layout by ``Layout.shard`` and ``Layout.cut``; the meta device is enough.
        layout: of the rank.
        sharings: of the model's parameters, by name.
        buckets: of the optimizer.

    Returns:
        One entry per group, op and purpose, in the order in which they first occur.
    """
    ledger, uses = Ledger(layout), Uses.of(model, layout, step.weight)
    ledger.add("world", "all_reduce", "targets, tokens, wish to stop", FACTS)
    with ledger.repeated(step.micro_batches):
        if layout.mode == "isp":
            weight_parallel(ledger, uses, layout.part("weight").parts, fused=step.weight.layer_fuse_isp_comm)
            attention_exchanges(ledger, uses, layout, step.tokens, keeps_attention=step.keeps_attention)
        elif layout.part("tensor").parts > 1:
            tensor_parallel(ledger, uses, layout, step.tokens)
        expert_weights(ledger, model, layout)
    if step.mixture is not None:
        routed_experts(
            ledger,
            uses,
            layout,
            step.tokens,
            step.micro_batches,
            auxiliary_losses=step.mixture.auxiliary_losses,
            routed=step.mixture.routed,
        )
    pipeline(ledger, model, layout, step.micro_batches, step.tokens)
    units = gathered_units(model, layout, sharings)
    fully_sharded(ledger, units, layout, step.micro_batches, step.communicate)
    for bucket in buckets:
        _reduction(ledger, bucket, step.communicate)
    tied_ends(ledger, layout, buckets)
    ledger.add("world", "all_reduce", "gradient norm", torch.float32.itemsize)
    for bucket in buckets:
        if bucket.zero.size > 1:
            ledger.add(bucket.zero.name, "all_gather", "new parameters", bucket.values.nbytes)
    _sums(ledger, step)
    return ledger.exchanges()


def _reduction(ledger: Ledger, bucket: Bucket, dtype: torch.dtype) -> None:
    """ZeRO: into parts over the shard group, these over the replicas."""
    size = bucket.gradient.numel() * dtype.itemsize
    if bucket.zero.size > 1:
        ledger.add(bucket.zero.name, "reduce_scatter", "gradients to their owners", size)
    ledger.add(bucket.replicas.name, "all_reduce", "gradients of the replicas", size // bucket.zero.size)


def _sums(ledger: Ledger, step: Step) -> None:
    """What all ranks have counted."""
    float32 = torch.float32.itemsize
    sums = (1 + step.types) * COLUMNS_OF_METER + step.further
    ledger.add("world", "all_reduce", "sums of the metrics", sums * float32)
    if step.mixture is not None:
        columns = 2 * step.mixture.experts + COLUMNS_OF_ROUTER
        ledger.add("world", "all_reduce", "sums of the routers", step.mixture.layers * columns * float32)
