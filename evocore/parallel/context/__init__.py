"""Two-dimensional sequence parallelism (LoongTrain; Gu et al., 2024): attention divided by heads and by context.

The ranks of a tensor group are a grid. Those of a head group exchange tokens for heads, as in isp alone. Those of a
context group keep their tokens; their keys and values travel around a ring, or around rings in a ring, from rank to
rank (Liu et al., 2023), while each rank computes with those at hand. Tokens are dealt in zigzag, so that under the
causal mask every rank has as much to do with each block that arrives.
"""

from evocore.parallel.context.attention import RingAttention
from evocore.parallel.context.rings import Rings
from evocore.parallel.context.zigzag import own_ranges

__all__ = ["RingAttention", "Rings", "own_ranges"]
