"""Traffic of pipelines: activations to the next chunk, their gradients to the one before, and what both ends share.

Both ends of a message know the tables of all stages and the shapes of all micro-batches: nothing else is sent. A
message is one tensor, or two where the residual stream is of another dtype than what is added to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from evocore.parallel.buckets import Bucket
from evocore.parallel.layout import Layout
from evocore.parallel.pipeline.messages import Message, compile_tables
from evocore.parallel.traffic.ledger import Ledger

_PURPOSES = {"F": "activations to the next chunk", "I": "gradients to the chunk before"}


def pipeline(ledger: Ledger, model: nn.Module, layout: Layout, micro_batches: int, tokens: int) -> None:
    """Messages of a step.

    Args:
        tokens: of a micro-batch of the whole tensor group.
    """
    schedule, stage = layout.schedule, layout.part("pipeline").index
    program = compile_tables(schedule, schedule.tables(micro_batches))[stage]
    own = sum(stop - start for start, stop in layout.own_tokens(tokens))
    if layout.mode in ("msp", "fsp"):
        own //= layout.part("tensor").parts
    carried: tuple[Tensor, ...] = model.carried(own)  # type: ignore[operator]

    def add(op: str, message: Message, source: int, target: int) -> None:
        for one in carried:
            ledger.add(_channel(source, target), op, _PURPOSES[message.kind], one.nbytes)

    for step in program.steps:
        if step.sends is not None:
            message, target = step.sends
            add("send", message, stage, target)
    for source, incoming in program.incoming.items():
        for message in incoming:
            add("recv", message, source, stage)


def tied_ends(ledger: Ledger, layout: Layout, buckets: Sequence[Bucket]) -> None:
    """Reduced gradients of a weight that the first and the last stage hold: each sends the other its own."""
    own, last = layout.part("pipeline").index, layout.schedule.stages - 1
    other = last if own == 0 else 0
    for bucket in buckets:
        if bucket.tied > 1:
            purpose, size = "gradients of tied weights", bucket.reduced.nbytes
            ledger.add(_channel(own, other), "send", purpose, size)
            ledger.add(_channel(other, own), "recv", purpose, size)


def _channel(source: int, target: int) -> str:
    return "pipeline" if source < target else "pipeline_down"
