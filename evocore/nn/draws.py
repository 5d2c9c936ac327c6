"""Random numbers that depend on what they are for and on nothing else: not on the device, the layout or the order.

Each number is a hash of a key and of its place, so that whichever rank has a token, and however often it computes it,
finds the same ones (Salmon et al., 2011). Integers stay below 2**63, where all devices agree.

Shapes: T tokens, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evocore.seeds import derive_seed

_BITS = 2**32 - 1


def uniform(key: int, rows_T: Tensor, columns: int) -> Tensor:
    """``[T, C]`` float32 between 0 and 1, never either of them.

    Args:
        key: says what for.
        rows_T: int64 numbers of the rows, the same for the same token everywhere.
    """
    key = derive_seed(key)  # so that all bits of two keys that look alike differ
    places_C = torch.arange(columns, dtype=torch.int64, device=rows_T.device)
    rows_T, places_C = _mixed(rows_T ^ (key & _BITS)), _mixed(places_C ^ (key >> 32 & _BITS))
    bits_TC = _mixed(rows_T[:, None] ^ places_C)
    return ((bits_TC >> 9).float() + 0.5) * 2.0**-23


def gumbel(key: int, rows_T: Tensor, columns: int) -> Tensor:
    """``[T, C]``: added to logits, it makes of the k highest a draw of k without replacement (Kool et al., 2019)."""
    return -(-uniform(key, rows_T, columns).log()).log()


def _mixed(x: Tensor) -> Tensor:
    """A permutation of the numbers of 32 bits, each bit of the result dependent on all of ``x``.

    The constants are of the "hash prospector" (Wellons, 2018), the best of two rounds that fit 31 bits.
    """
    x = x ^ x >> 16
    x = x * 0x21F0AAAD & _BITS
    x = x ^ x >> 15
    x = x * 0x735A2D97 & _BITS
    return x ^ x >> 15
