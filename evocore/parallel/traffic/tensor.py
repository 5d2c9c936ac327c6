"""Traffic of tensor parallelism: of mtp, msp and fsp; see ``evocore.parallel.tensor``.

Shapes: T tokens of a micro-batch, D width, W ranks of a group.
"""

from __future__ import annotations

import torch

from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.parallel.isp.plan import Call, Layer
from evocore.parallel.layout import Layout
from evocore.parallel.sharding import COLUMNS, ROWS
from evocore.parallel.traffic.ledger import Ledger
from evocore.parallel.traffic.uses import Uses

STATISTICS = 4
"""Float32 numbers per token that each rank of a divided vocabulary contributes to the loss."""


def tensor_parallel(ledger: Ledger, uses: Uses, layout: Layout, tokens: int) -> None:
    """Of one micro-batch with T tokens."""
    mode = layout.mode
    for call in uses.calls:
        layer = call.layers[0]
        forwards = uses.forwards(call.block)
        if isinstance(layer, Embedding):
            with ledger.repeated(uses.edges[layer]):
                _sum_of_outputs(ledger, mode, "embeddings", tokens * _row(layer), 1)
        elif isinstance(layer, Head):
            with ledger.repeated(uses.edges[layer]):
                _shared_input(ledger, mode, "head", tokens * _row(layer), 1)
                ranks = layout.part("tensor").parts
                statistics = ranks * STATISTICS * tokens * max(layer.weight.itemsize, torch.float32.itemsize)
                ledger.add("tensor", "all_gather", "loss: statistics of the words", statistics)
        elif layer.role in COLUMNS:
            _shared_input(ledger, mode, "layers", tokens * _row(layer), forwards)
            _whole_heads(ledger, call, layout.part("kv").parts, tokens, forwards)
        elif layer.role is not Role.REPLICATED:
            assert layer.role in ROWS, layer.role
            size = tokens * layer.weight.shape[0] * layer.weight.itemsize
            _sum_of_outputs(ledger, mode, "layers", size, uses.results(call.block, layer))
    for number, block in enumerate(uses.blocks):
        for module in block.modules():
            if isinstance(module, Projecting) and module.shared:
                size = tokens * module.shared * next(module.parameters()).itemsize
                _shared_by_heads(ledger, mode, size, uses.forwards(number))


def _row(layer: Layer) -> int:
    """Bytes of one token's input of a layer, or of its embedding."""
    return layer.weight.shape[1] * layer.weight.itemsize


def _shared_input(ledger: Ledger, mode: str, of: str, size: int, forwards: int) -> None:
    """An input that all ranks multiply with their parts of the weights: ``fan_out``, and the head."""
    if mode == "mtp":
        ledger.add("tensor", "all_reduce", f"{of}: gradient of the input", size)
        return
    ledger.add("tensor", "all_gather", f"{of}: input", size, forwards)
    if mode == "fsp":
        ledger.add("tensor", "all_gather", f"{of}: input, again in backward", size)
    ledger.add("tensor", "reduce_scatter", f"{of}: gradient of the input", size)


def _shared_by_heads(ledger: Ledger, mode: str, size: int, forwards: int) -> None:
    """What all heads use: ``share``."""
    if mode == "mtp":
        ledger.add("tensor", "all_reduce", "gradients of what heads share", size)
    else:
        ledger.add("tensor", "all_gather", "what heads share", size, forwards)
        ledger.add("tensor", "reduce_scatter", "gradients of what heads share", size)


def _sum_of_outputs(ledger: Ledger, mode: str, of: str, size: int, forwards: int) -> None:
    """An output of which each rank has a summand: ``fan_in``, and the embedding."""
    ledger.add("tensor", "all_reduce" if mode == "mtp" else "reduce_scatter", f"{of}: output", size, forwards)
    if mode != "mtp":
        ledger.add("tensor", "all_gather", f"{of}: gradient of the output", size)


def _whole_heads(ledger: Ledger, call: Call, ranks: int, tokens: int, forwards: int) -> None:
    """Keys and values where there are fewer of their heads than ranks: each rank computes a part of one."""
    size = 0
    for layer in call.layers:
        assert isinstance(layer, Linear), layer
        width = sum(length for name, length in layer.segments if name in ("k", "v"))
        size += ranks * tokens * width * layer.weight.itemsize
    ledger.add("kv", "all_gather", "parts of keys and values", size, forwards)
    ledger.add("kv", "reduce_scatter", "gradients of keys and values", size)
