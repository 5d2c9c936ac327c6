"""Log-sum-exp as ring steps hold it, ``[T, N]``, and as FlashAttention does, ``[N, T]``.

For a query that sees no key the contract says minus infinity, the logarithm of an empty sum; FlashAttention 2 writes
plus infinity. Its backward reads neither: a document that shows a query no key has no keys.
"""

import math

import torch
from torch import Tensor


def from_library(lse_NT: Tensor) -> Tensor:
    return lse_NT.masked_fill(lse_NT == math.inf, -math.inf).T


def to_library(lse_TN: Tensor) -> Tensor:
    return lse_TN.T.contiguous()


def nothing_seen(q_TNH: Tensor) -> Tensor:
    """Of queries without any key."""
    return torch.full(q_TNH.shape[:2], -math.inf, dtype=torch.float32, device=q_TNH.device)
