"""A few numbers that tell one tensor from another, comparable across devices, kernels and precisions."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from evocore.data.batch import MicroBatch
from evocore.training.sums import sum_of_squares

ELEMENTS = 8
"""Single elements in a fingerprint, at fixed positions from the first to the last."""
STATISTICS = ("mean", "rms", "max")


def fingerprint(x: Tensor) -> Tensor:
    """Mean, root mean square and largest magnitude of a floating-point tensor, then ``ELEMENTS`` of its elements.

    Returns:
        ``[3 + ELEMENTS]``, float32, on the tensor's device: nobody waits for it. Zeros for an empty tensor.
    """
    if not x.numel():
        return torch.zeros(len(STATISTICS) + ELEMENTS, device=x.device)
    mean = x.mean(dtype=torch.float32)
    rms = (sum_of_squares(x) / x.numel()).sqrt()
    largest = torch.linalg.vector_norm(x, torch.inf, dtype=torch.float32)
    places = [number * (x.numel() - 1) // (ELEMENTS - 1) for number in range(ELEMENTS)]
    chosen = [x[_index(place, x.shape)].float() for place in places]
    return torch.stack([mean, rms, largest, *chosen])


def as_fields(numbers: list[float]) -> dict[str, Any]:
    """A fingerprint on the host as fields of a record."""
    return {
        **dict(zip(STATISTICS, numbers, strict=False)),
        "elements": numbers[len(STATISTICS) :],
    }


def data_digest(batch: MicroBatch) -> str:
    """Short hash of everything that the model is given in a micro-batch."""
    found = hashlib.sha256(repr(batch.cu_seqlens).encode())
    for tensor in (batch.tokens_T, batch.labels_T, batch.positions_T):
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _index(place: int, shape: torch.Size) -> tuple[int, ...]:
    """The indices of an element that is number ``place`` in reading order, whatever the strides are."""
    index = []
    for size in reversed(shape):
        place, rest = divmod(place, size)
        index.append(rest)
    return tuple(reversed(index))
