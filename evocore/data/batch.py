"""What the data room hands out: token-major micro-batches on the host.

Shapes: T tokens of one micro-batch. A dense batch ``[b, s]`` is the case of ``b`` spans of ``s`` tokens.
"""

# ruff: noqa: N815 - fields carry their shape as a suffix, as variables do

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """One forward and backward pass on one data rank; all tensors are int64 on the CPU.

    Args:
        tokens_T: input ids.
        labels_T: the id to predict at each place, -100 where there is no loss. It can be -100 everywhere (filler in
            validation), so weigh losses by the count of targets.
        positions_T: place inside the span, starting at 0 in each.
        cu_seqlens: ends of the attention spans on the host: 0, ..., T.
        types_T: index into ``type_names`` for each token; None if the data has no types.
        type_names: dataset types (languages), in the order of their ids.
    """

    tokens_T: Tensor
    labels_T: Tensor
    positions_T: Tensor
    cu_seqlens: tuple[int, ...]
    types_T: Tensor | None = None
    type_names: tuple[str, ...] = ()

    @property
    def lengths(self) -> list[int]:
        """Tokens of each attention span."""
        return [end - start for start, end in pairwise(self.cu_seqlens)]


@dataclass(frozen=True)
class StepBatch:
    """What one data rank computes in one optimizer step.

    Args:
        micro_batches: in order; empty if the batch is skipped.
        skipped: named by ``data.skip_batches``: its data counts as consumed, nothing is trained on it.
        batch_count: number of this batch since the start of the training, from 0, skipped ones included.
    """

    micro_batches: list[MicroBatch]
    skipped: bool
    batch_count: int
