"""What one rank exchanges in one step, by arithmetic: which groups, which collectives, how often, how many bytes.

Nothing is connected and nothing has memory, so that a layout of any size is counted on one machine. The figures are
exact; tests compare them with what ranks really exchange. They follow the layers' roles and the parts that the rank
holds of them, never the names of a family. Not counted: what happens beside the steps (start, validation,
checkpoints), messages between pipeline stages, experts, and fully sharded data parallelism.

Shapes: T tokens of a micro-batch, D width, W ranks of a group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evocore.config.schema_parallel import Weight
from evocore.nn.binding import UsesOps
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear
from evocore.ops.attention import AttentionRequest
from evocore.parallel.buckets import Bucket
from evocore.parallel.context.messages import messages
from evocore.parallel.isp.plan import Call, Layer, Unit, make_plan
from evocore.parallel.layout import Layout
from evocore.parallel.sharding import COLUMNS, ROWS

FACTS = 4 * torch.int64.itemsize
"""Bytes of what all ranks tell one another before a step: targets, tokens, whether to stop, whether to save."""
COLUMNS_OF_METER = 3
STATISTICS = 4
"""Float32 numbers per token that each rank of a divided vocabulary contributes to the loss."""


@dataclass(frozen=True)
class Exchange:
    """One kind of exchange of one rank in one step.

    Attributes:
        group: a name of ``Topology.names``.
        op: the method of ``Collectives``.
        purpose: what is exchanged, in a few words.
        calls: how often.
        bytes: of all calls, as ``RecordingCollectives`` counts: the whole (gathered, unreduced) tensor for all_gather
            and reduce_scatter, what goes in for all_to_all, the tensor otherwise.
    """

    group: str
    op: str
    purpose: str
    calls: int
    bytes: int


def traffic(
    model: nn.Module,
    layout: Layout,
    buckets: Sequence[Bucket],
    *,
    micro_batches: int,
    tokens: int,
    weight: Weight,
    communicate: torch.dtype | None = None,
    types: int = 0,
) -> list[Exchange]:
    """Everything that a rank exchanges in one step in which all gradients are finite.

    Args:
        model: cut to the layout by ``Layout.shard``; the meta device is enough.
        layout: of the rank.
        buckets: of the optimizer.
        micro_batches: of this rank in one step.
        tokens: T, of a micro-batch of the whole tensor group.
        weight: settings of weight parallelism.
        communicate: dtype in which gradients travel; None for float32.
        types: dataset types that the metrics are told apart by.

    Returns:
        One entry per group, op and purpose, in the order in which they first occur.
    """
    ledger = _Ledger(layout)
    recomputed: int = model.recomputed_attention_layers()  # type: ignore[operator]
    calls = make_plan(model, weight, recomputed)
    ledger.add("world", "all_reduce", "targets, tokens, wish to stop", FACTS)
    ledger.repeat = micro_batches
    if layout.mode == "isp":
        _weight_parallel(ledger, calls, layout.part("weight").parts, fused=weight.layer_fuse_isp_comm)
        _attention_exchanges(ledger, model, layout, tokens, recomputed)
    elif layout.part("tensor").parts > 1:
        _tensor_parallel(ledger, calls, layout, tokens, recomputed)
    ledger.repeat = 1
    for bucket in buckets:
        _reduction(ledger, bucket, communicate or torch.float32)
    ledger.add("world", "all_reduce", "gradient norm", torch.float32.itemsize)
    for bucket in buckets:
        if bucket.zero.size > 1:
            ledger.add(bucket.zero.name, "all_gather", "new parameters", bucket.values.nbytes)
    ledger.add("world", "all_reduce", "sums of the metrics", (1 + types) * COLUMNS_OF_METER * torch.float32.itemsize)
    return ledger.exchanges()


class _Ledger:
    """Adds up; a group of one rank exchanges nothing, and neither does anybody who has nothing.

    Attributes:
        repeat: how often what is added happens.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._calls: Counter[tuple[str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str]] = Counter()
        self.repeat = 1

    def add(self, group: str, op: str, purpose: str, size: int, times: int = 1) -> None:
        """``times`` calls with ``size`` bytes each."""
        times *= self.repeat
        if size and times and self._layout.part(group).parts > 1:
            self._calls[group, op, purpose] += times
            self._bytes[group, op, purpose] += times * size

    def exchanges(self) -> list[Exchange]:
        return [Exchange(*key, calls, self._bytes[key]) for key, calls in self._calls.items()]


def _reduction(ledger: _Ledger, bucket: Bucket, dtype: torch.dtype) -> None:
    """ZeRO: into parts over the shard group, these over the replicas."""
    size = bucket.gradient.numel() * dtype.itemsize
    if bucket.zero.size > 1:
        ledger.add(bucket.zero.name, "reduce_scatter", "gradients to their owners", size)
    ledger.add(bucket.replicas.name, "all_reduce", "gradients of the replicas", size // bucket.zero.size)


# --- tensor parallelism ---------------------------------------------------------------------------------------------


def _tensor_parallel(ledger: _Ledger, calls: Sequence[Call], layout: Layout, tokens: int, recomputed: int) -> None:
    mode = layout.mode
    for number, call in enumerate(calls):
        layer = call.layers[0]
        again = call.block is not None and call.block < recomputed
        ends_block = number + 1 == len(calls) or calls[number + 1].block != call.block
        if isinstance(layer, Embedding):
            _sum_of_outputs(ledger, mode, "embeddings", tokens * _row(layer), 1)
        elif isinstance(layer, Head):
            _shared_input(ledger, mode, "head", tokens * _row(layer), 1)
            ranks = layout.part("tensor").parts
            statistics = ranks * STATISTICS * tokens * max(layer.weight.itemsize, torch.float32.itemsize)
            ledger.add("tensor", "all_gather", "loss: statistics of the words", statistics)
        elif layer.role in COLUMNS:
            _shared_input(ledger, mode, "layers", tokens * _row(layer), 1 + again)
            _whole_heads(ledger, call, layout.part("kv").parts, tokens, 1 + again)
        else:
            assert layer.role in ROWS, layer.role
            # Recomputation stops at the last kept tensor, the input of a block's last product.
            size = tokens * layer.weight.shape[0] * layer.weight.itemsize
            _sum_of_outputs(ledger, mode, "layers", size, 1 + (again and not ends_block))


def _row(layer: Layer) -> int:
    """Bytes of one token's input of a layer, or of its embedding."""
    return layer.weight.shape[1] * layer.weight.itemsize


def _shared_input(ledger: _Ledger, mode: str, of: str, size: int, forwards: int) -> None:
    """An input that all ranks multiply with their parts of the weights: ``fan_out``, and the head."""
    if mode == "mtp":
        ledger.add("tensor", "all_reduce", f"{of}: gradient of the input", size)
        return
    ledger.add("tensor", "all_gather", f"{of}: input", size, forwards)
    if mode == "fsp":
        ledger.add("tensor", "all_gather", f"{of}: input, again in backward", size)
    ledger.add("tensor", "reduce_scatter", f"{of}: gradient of the input", size)


def _sum_of_outputs(ledger: _Ledger, mode: str, of: str, size: int, forwards: int) -> None:
    """An output of which each rank has a summand: ``fan_in``, and the embedding."""
    ledger.add("tensor", "all_reduce" if mode == "mtp" else "reduce_scatter", f"{of}: output", size, forwards)
    if mode != "mtp":
        ledger.add("tensor", "all_gather", f"{of}: gradient of the output", size)


def _whole_heads(ledger: _Ledger, call: Call, ranks: int, tokens: int, forwards: int) -> None:
    """Keys and values where there are fewer of their heads than ranks: each rank computes a part of one."""
    size = 0
    for layer in call.layers:
        assert isinstance(layer, Linear), layer
        width = sum(length for name, length in layer.segments if name in ("k", "v"))
        size += ranks * tokens * width * layer.weight.itemsize
    ledger.add("kv", "all_gather", "parts of keys and values", size, forwards)
    ledger.add("kv", "reduce_scatter", "gradients of keys and values", size)


# --- isp ------------------------------------------------------------------------------------------------------------


def _weight_parallel(ledger: _Ledger, calls: Sequence[Call], ranks: int, *, fused: bool) -> None:
    """Each weight comes together for forward and for backward, where a recomputation finds it, too."""
    for unit in dict.fromkeys(call.unit for call in calls):
        for size in gathered_sizes(unit, ranks, fused=fused):
            ledger.add("weight", "all_gather", "weights for forward", size)
            if not any(isinstance(layer, Embedding | Head) for layer in unit.layers):  # these need none, or keep it
                ledger.add("weight", "all_gather", "weights for backward", size)
        for layer in unit.layers:
            ledger.add("weight", "reduce_scatter", "gradients of weights", ranks * layer.weight.nbytes)


def gathered_sizes(unit: Unit, ranks: int, *, fused: bool) -> list[int]:
    """Bytes of each of the collectives that bring a unit's weights together, padding included."""
    sizes = [ranks * layer.weight.nbytes for layer in unit.layers]
    return [sum(sizes)] if fused else sizes


def _attention_exchanges(ledger: _Ledger, model: nn.Module, layout: Layout, tokens: int, recomputed: int) -> None:
    """Around attention heads are exchanged for tokens, and in backward their gradients; in it, keys and values."""
    window, windows = layout.part("intra_window").parts, layout.part("inter_window").parts
    context = window * windows
    group = "head" if context > 1 else "sequence"
    tokens //= context
    for block, request in enumerate(_attentions(model.modules())):
        head = tokens * request.head_dim * request.dtype.itemsize
        mixed, qkv = request.heads * head, (request.heads + 2 * request.kv_heads) * head
        forwards = 1 + (block < recomputed)
        ledger.add(group, "all_to_all", "queries, keys, values to their heads", qkv, forwards)
        ledger.add(group, "all_to_all", "results of attention to their tokens", mixed, forwards)
        ledger.add(group, "all_to_all", "gradients of the results", mixed)
        ledger.add(group, "all_to_all", "gradients of queries, keys, values", qkv)
        elements = 2 * tokens * request.kv_heads * request.head_dim
        for kind in messages(window, windows, elements, request.dtype.itemsize):
            for op in ("send", "recv"):
                ledger.add(kind.group, op, kind.purpose, kind.bytes, forwards * kind.forward + kind.backward)


def _attentions(modules: Iterable[nn.Module]) -> Iterator[AttentionRequest]:
    """What each attention layer asks for, in block order: this rank's heads."""
    for module in modules:
        for request in module.requests().values() if isinstance(module, UsesOps) else ():
            if isinstance(request, AttentionRequest):
                yield request
