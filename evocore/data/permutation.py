"""Random orders that need no memory and never change.

The order of an epoch must be the same on every rank, after every resume and under every version of numpy, and a run
may start in the middle of it. A block cipher over ``0..n-1`` gives all of that: the element at any place is computed
when it is asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from evocore.seeds import derive_seed

_ROUNDS = 6
_BLOCK = 1 << 14  # elements whose intermediate results fit the cache


def mix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words one by one (finaliser of SplitMix64, Steele, Lea and Flood, 2014). A bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


class Permutation:
    """A pseudo-random bijection of ``0..size-1``: an alternating Feistel network with cycle walking.

    Reference: Black and Rogaway, "Ciphers with Arbitrary Finite Domains" (2002). O(1) memory and start-up.
    """

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        bits = max(2, (size - 1).bit_length())
        self.size = size
        self._low_bits = np.uint64(bits // 2)
        self._low_mask = np.uint64((1 << (bits // 2)) - 1)
        self._high_mask = np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = [np.uint64(derive_seed(seed, number)) for number in range(_ROUNDS)]

    def __call__(self, places: NDArray[np.integer]) -> NDArray[np.int64]:
        """The elements at ``places`` (each in ``0..size-1``), in a new array of the same shape."""
        result = self._encrypt(places.astype(np.uint64))
        while (outside := result >= self.size).any():  # the network covers a power of two below 2 * size
            result[outside] = self._encrypt(result[outside])
        return result.astype(np.int64)

    def all(self) -> NDArray[np.integer]:
        """The elements at all places, as uint32 where that is enough."""
        result: NDArray[np.integer] = np.empty(self.size, np.uint32 if self.size <= 2**32 else np.int64)
        for start in range(0, self.size, _BLOCK):
            stop = min(start + _BLOCK, self.size)
            result[start:stop] = self(np.arange(start, stop))
        return result

    def _encrypt(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        low, high = values & self._low_mask, values >> self._low_bits
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= _scramble(high ^ key) & self._low_mask
            else:
                high ^= _scramble(low ^ key) & self._high_mask
        return (high << self._low_bits) | low


def _scramble(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """32 bits that depend on all bits of each word; changes ``words``."""
    words *= np.uint64(0xBF58476D1CE4E5B9)
    words ^= words >> np.uint64(32)
    words *= np.uint64(0x94D049BB133111EB)
    words >>= np.uint64(32)
    return words
