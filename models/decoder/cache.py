"""Keys and values of tokens already seen, so that generation computes each token once.

Shapes: B sequences, L capacity, S tokens so far, K key-value heads, H head size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from evocore.ops.attention import CuSeqlens


class KeyValueCache:
    """One buffer ``[B, L, K, H]`` of keys and one of values per layer.

    What is kept need not be keys and values of heads, but whatever these are made of; the two may differ in width.

    Call ``extend`` once before each forward pass, then every layer calls ``append``.
    """

    def __init__(
        self,
        *,
        layers: int,
        sequences: int,
        capacity: int,
        kv_heads: int,
        head_dim: int,
        value_dim: int | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = layers, sequences, capacity, kv_heads
        self._keys = torch.empty(*shape, head_dim, dtype=dtype, device=device)
        self._values = torch.empty(*shape, value_dim or head_dim, dtype=dtype, device=device)
        self._device, self.capacity = device, capacity
        self.lengths = [0] * sequences
        self._starts = [0] * sequences
        self.documents = CuSeqlens.of([0] * (sequences + 1), device)

    def extend(self, new: CuSeqlens) -> None:
        """Make room for the tokens of this pass, as many documents as there are sequences.

        Raises:
            ValueError: if a sequence would outgrow the capacity.
        """
        self._starts = self.lengths
        self.lengths = [length + more for length, more in zip(self._starts, new.lengths, strict=True)]
        if max(self.lengths) > self.capacity:
            raise ValueError(f"{max(self.lengths)} tokens do not fit a cache of {self.capacity}")
        ends = [0]
        for length in self.lengths:
            ends.append(ends[-1] + length)
        self.documents = CuSeqlens.of(ends, self._device)

    def append(self, layer: int, k_TKH: Tensor, v_TKH: Tensor, new: CuSeqlens) -> tuple[Tensor, Tensor]:
        """Store this pass's keys and values and return all so far, ``[S, K, H]`` in the layout of ``documents``."""
        kept_k, kept_v = [], []
        for row, (start, end) in enumerate(pairwise(new.host)):
            first, last = self._starts[row], self.lengths[row]
            self._keys[layer, row, first:last] = k_TKH[start:end]
            self._values[layer, row, first:last] = v_TKH[start:end]
            kept_k.append(self._keys[layer, row, :last])
            kept_v.append(self._values[layer, row, :last])
        if len(kept_k) == 1:
            return kept_k[0], kept_v[0]
        return torch.cat(kept_k), torch.cat(kept_v)
