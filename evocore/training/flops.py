"""Exact floating-point operations of a step, and what share of the device's peak they used.

A weight of a matrix product costs 2 operations per token in forward and 4 in backward. Attention costs, for each
query and each key that it may see, 2 H for the score and 2 V for the mix per head in forward, H and V being the sizes
of a key and a value, and twice that in backward (Korthikanti et al., 2022, appendix A, but counting only the visible
half of a causal mask and each document by itself). MFU counts the operations that the model needs, HFU also those
that recomputation repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evocore.nn.family import AttentionShape, LanguageModel


@dataclass(frozen=True)
class Flops:
    """Operations: ``model`` without and ``hardware`` with recomputation."""

    model: float
    hardware: float

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.model + other.model, self.hardware + other.hardware)


NONE = Flops(0.0, 0.0)


def visible_pairs(length: int, shape: AttentionShape) -> int:
    """How many (query, key) pairs of one document the mask leaves."""
    if not shape.causal:
        return length * length
    window = length if shape.window is None else min(shape.window, length)
    return window * (window + 1) // 2 + (length - window) * window


class FlopsCounter:
    """Counts training steps of one model; the model's figures are read once.

    Args:
        keeps_attention: recomputed layers do not repeat attention.
    """

    def __init__(self, model: LanguageModel, *, keeps_attention: bool = False) -> None:
        self._weights = model.matmul_parameters()
        self._repeated_weights = model.recomputed_matmul_parameters()
        self._shapes = model.attention_shapes()
        self._repeated_shapes = [] if keeps_attention else self._shapes[: model.recomputed_attention_layers()]

    def training(self, lengths: Sequence[int], share: float = 1.0) -> Flops:
        """Forward and backward of one micro-batch with documents of these lengths, or this rank's share of it."""
        forward = 2.0 * self._weights * sum(lengths) + _attention(self._shapes, lengths)
        repeated = 2.0 * self._repeated_weights * sum(lengths) + _attention(self._repeated_shapes, lengths)
        return Flops(3 * forward * share, (3 * forward + repeated) * share)


def _attention(shapes: Sequence[AttentionShape], lengths: Sequence[int]) -> float:
    total = 0.0
    pairs: dict[AttentionShape, int] = {}
    for shape in shapes:
        if shape not in pairs:
            pairs[shape] = sum(visible_pairs(length, shape) for length in lengths)
        values = shape.head_dim if shape.value_dim is None else shape.value_dim
        total += 2.0 * shape.heads * (shape.head_dim + values) * pairs[shape]
    return total
