"""Intern sequence parallelism (isp): sequences and weights are divided, each over a group of its own.

Every rank computes with its part of the tokens and keeps a flat shard of every weight matrix. A weight is gathered
when it is needed, in forward and again in backward, and its gradient is reduced to the shards; both beside compute if
``overlap`` is on. Attention sees whole sequences: there, and only there, heads are divided instead of tokens.
"""

from evocore.parallel.isp.ulysses import wrap_attention
from evocore.parallel.isp.weights import WeightParallel

__all__ = ["WeightParallel", "wrap_attention"]
