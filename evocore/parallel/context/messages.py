"""What one rank sends in one call of ring attention, by arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Messages:
    """Messages of one kind that a rank sends, and as many that it receives.

    Attributes:
        group: a name of ``Topology.names``.
        purpose: what they bring, in a few words.
        forward, backward: how many in one forward and in one backward.
        bytes: of each.
    """

    group: str
    purpose: str
    forward: int
    backward: int
    bytes: int


def messages(window: int, windows: int, elements: int, itemsize: int) -> list[Messages]:
    """All messages of a call.

    With W ranks of a window, O windows and C = W O, keys and values take ``O (W - 1) + O - 1 = C - 1`` messages in
    forward and as many in backward. Their gradients take C, or none where W is 1, within windows and O, or none where
    O is 1, between them: one more than the blocks each time, as they have to come home.

    Args:
        window: W.
        windows: O.
        elements: of the keys and values of one rank: ``2 t K H``.
        itemsize: bytes of one; gradients travel in 4 bytes at least.
    """
    wide = max(itemsize, 4)
    blocks, sums = "keys and values of other ranks", "gradients of keys and values"
    within, between = windows * (window - 1), windows - 1
    found = [
        Messages("intra_window", blocks, within, within, elements * itemsize),
        Messages("inter_window", blocks, between, between, elements * itemsize),
        Messages("dkv_intra_window", sums, 0, windows * window if window > 1 else 0, elements * wide),
        Messages("dkv_inter_window", sums, 0, windows if windows > 1 else 0, elements * wide),
    ]
    return [one for one in found if one.backward]
