"""Traffic of isp: weights that come together for each use, and attention's exchanges of heads, keys and values.

Shapes: T tokens of a micro-batch, W ranks of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from evocore.nn.binding import UsesOps
from evocore.ops.attention import AttentionRequest
from evocore.parallel.context.messages import messages
from evocore.parallel.isp.plan import Unit
from evocore.parallel.layout import Layout
from evocore.parallel.traffic.ledger import Ledger
from evocore.parallel.traffic.uses import Uses


def weight_parallel(ledger: Ledger, uses: Uses, ranks: int, *, fused: bool) -> None:
    """Each weight comes together for forward and for backward, where a recomputation finds it, too."""
    for unit in dict.fromkeys(call.unit for call in uses.calls):
        times = uses.edges.get(unit.layers[0])  # of an embedding or a head, which need none in backward, or keep it
        for size in gathered_sizes(unit, ranks, fused=fused):
            ledger.add("weight", "all_gather", "weights for forward", size, times or 1)
            if times is None:
                ledger.add("weight", "all_gather", "weights for backward", size)
        for layer in unit.layers:
            ledger.add("weight", "reduce_scatter", "gradients of weights", ranks * layer.weight.nbytes, times or 1)


def gathered_sizes(unit: Unit, ranks: int, *, fused: bool) -> list[int]:
    """Bytes of each of the collectives that bring a unit's weights together, padding included."""
    sizes = [ranks * layer.weight.nbytes for layer in unit.layers]
    return [sum(sizes)] if fused else sizes


def attention_exchanges(ledger: Ledger, uses: Uses, layout: Layout, tokens: int, *, keeps_attention: bool) -> None:
    """Around attention heads are exchanged for tokens, and in backward their gradients; in it, keys and values.

    Args:
        tokens: T.
        keeps_attention: recomputation repeats what is around attention, but not attention itself.
    """
    window, windows = layout.part("intra_window").parts, layout.part("inter_window").parts
    context = window * windows
    group = "head" if context > 1 else "sequence"
    tokens //= context
    for number, block in enumerate(uses.blocks):
        forwards = uses.forwards(number)
        for request in _attentions(block):
            head = tokens * request.head_dim * request.dtype.itemsize
            mixed, qkv = request.heads * head, (request.heads + 2 * request.kv_heads) * head
            ledger.add(group, "all_to_all", "queries, keys, values to their heads", qkv, forwards)
            ledger.add(group, "all_to_all", "results of attention to their tokens", mixed, forwards)
            ledger.add(group, "all_to_all", "gradients of the results", mixed)
            ledger.add(group, "all_to_all", "gradients of queries, keys, values", qkv)
            elements = 2 * tokens * request.kv_heads * request.head_dim
            rounds = 1 if keeps_attention else forwards
            for kind in messages(window, windows, elements, request.dtype.itemsize):
                for op in ("send", "recv"):
                    ledger.add(kind.group, op, kind.purpose, kind.bytes, rounds * kind.forward + kind.backward)


def _attentions(block: nn.Module) -> Iterator[AttentionRequest]:
    """What attention in a block asks for: this rank's heads."""
    for module in block.modules():
        for request in module.requests().values() if isinstance(module, UsesOps) else ():
            if isinstance(request, AttentionRequest):
                yield request
