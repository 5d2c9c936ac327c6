"""Attention to whole sequences of which ranks hold parts: heads are exchanged for tokens (Jacobs et al., 2023).

Shapes: T tokens of the whole sequence, t those of this rank, N query heads, K key-value heads, H head size, S ranks
of the sequence group.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evocore.parallel.functions import heads_from_tokens, tokens_from_heads
from evocore.parallel.groups import Group

AttentionFunction = Callable[..., Tensor]


def wrap_attention(function: AttentionFunction, sequence: Group) -> AttentionFunction:
    """Attention of this rank's tokens to the whole sequence.

    Args:
        function: as the contract of ``attention``, for ``N / S`` query heads and ``K / S``, or one, key-value heads.
        sequence: ranks that hold the parts of a sequence, in order. S divides N, and one of S and K the other.

    Returns:
        A function of ``q_tNH, k_tKH, v_tKH`` that returns ``[t, N, H]``; documents and options are those of all T
        tokens. Differentiable as ``function`` is.
    """
    if sequence.size == 1:
        return function

    def attention(q_tNH: Tensor, k_tKH: Tensor, v_tKH: Tensor, **options: Any) -> Tensor:
        # Everything in one exchange: what goes to one rank are its query heads, then its keys, then its values.
        parts = [_by_rank(heads, sequence.size) for heads in (q_tNH, k_tKH, v_tKH)]
        lengths = [part.shape[2] for part in parts]
        mine_TMH = heads_from_tokens(torch.cat(parts, dim=2).flatten(1, 2), sequence)
        mixed_TNH = function(*mine_TMH.split(lengths, dim=1), **options)
        return tokens_from_heads(mixed_TNH, sequence)

    return attention


def _by_rank(x_tNH: Tensor, ranks: int) -> Tensor:
    """``[t, N, H] -> [t, S, N / S, H]``; fewer heads than ranks are repeated for the ranks that share them."""
    heads = x_tNH.shape[1]
    if heads < ranks:
        assert ranks % heads == 0, (heads, ranks)
        x_tNH, heads = x_tNH.repeat_interleave(ranks // heads, dim=1), ranks
    assert heads % ranks == 0, (heads, ranks)
    by_rank: Tensor = x_tNH.unflatten(1, (ranks, heads // ranks))
    return by_rank
