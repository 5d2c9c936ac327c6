"""Tokens spelt at fixed places: plain JSON to everybody else, found by arithmetic and parsed in a few passes by us.

Each id takes six places, filled up with spaces on the left, and ``", "`` follows it, so token ``i`` begins at byte
``8 i``: ``     5,  12345, 654321``. JSON allows the spaces, and other readers see an ordinary list. Two spaces in
front of the list say that a line is of this kind: its length alone may be that of another spelling by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HEAD, TAIL = b'{"tokens":  [', b"]}\n"
SEPARATOR = b", "
PLACES, WIDTH = 6, 8
LARGEST = 10**PLACES - 1
_POWERS = 10 ** np.arange(PLACES - 1, -1, -1)
_SEPARATOR = np.frombuffer(SEPARATOR, "<u2")[0]

# A pair of characters gives its value, times its power of 100, and above bit 20 how many of the two are blank: times
# 1 in the first pair, 3 in the second, 9 in the third. The sum of flags shows whether blanks stand on the left only.
_FLAG = 20
_VALUE = (1 << _FLAG) - 1
_ON_THE_LEFT = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 0), (2, 2, 0), (2, 2, 1)]
_GOOD_FLAGS = np.int32(sum(1 << (first + 3 * second + 9 * third) for first, second, third in _ON_THE_LEFT))
_BAD = 30 << _FLAG  # no sum with it is among those


def _codes(power: int, weight: int) -> NDArray[np.int32]:
    codes = np.full(1 << 16, _BAD, np.int32)
    pairs = [("  ", 0, 2)]
    pairs += [(f" {digit}", digit, 1) for digit in range(10)]
    pairs += [(f"{value:02}", value, 0) for value in range(100)]
    for text, value, blanks in pairs:
        codes[int.from_bytes(text.encode(), "little")] = value * power + ((blanks * weight) << _FLAG)
    return codes


_FIRST, _SECOND, _THIRD = _codes(10_000, 1), _codes(100, 3), _codes(1, 9)


def spell(tokens: Sequence[int]) -> bytes | None:
    """The inside of the list; None if a token is negative or has more than six digits."""
    ids = np.asarray(tokens, np.int64)
    if not len(ids) or ids.min() < 0 or ids.max() > LARGEST:
        return None
    text = np.empty((len(ids), WIDTH), np.uint8)
    text[:, :PLACES] = ids[:, None] // _POWERS % 10 + ord("0")
    text[:, : PLACES - 1][ids[:, None] < _POWERS[:-1]] = ord(" ")
    text[:, PLACES:] = ord(","), ord(" ")
    return text.tobytes()[:-2]


def parse(texts: list[bytes], count: int) -> NDArray[np.int64] | None:
    """All ``count`` ids of several insides; None unless each is spelt as :func:`spell` does it."""
    data = SEPARATOR.join([*texts, b""])
    if len(data) != WIDTH * count:
        return None
    pairs = np.frombuffer(data, "<u2").reshape(count, WIDTH // 2)
    if not (pairs[:, 3] == _SEPARATOR).all():
        return None
    codes = _FIRST[pairs[:, 0]] + _SECOND[pairs[:, 1]] + _THIRD[pairs[:, 2]]
    if not ((_GOOD_FLAGS >> np.minimum(codes >> _FLAG, 30)) & 1).all():
        return None
    ids: NDArray[np.int64] = (codes & _VALUE).astype(np.int64)
    return ids
