"""``attention`` by scaled_dot_product_attention with a choice among its implementations: cuDNN's, flash, ...

PyTorch's own order depends on its release and on that of cuDNN.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evocore.kernels.attention import native
from evocore.ops.attention import Attention

CUDNN_FIRST = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
CUDNN_MENDED = 91501
"""The release from which cuDNN reads nothing out of bounds where 128 does not divide the tokens of a document."""
CUDNN_BLOCK = 128


def attention(backends: Iterable[str]) -> Attention:
    """The kernel of provider native, document by document, confined to ``backends``: names of ``SDPBackend``.

    The first that can serve a call does.
    """
    chosen = tuple(backends)

    def run(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, **options: Any) -> Tensor:
        with confined_to(chosen):
            return native.attention(q_TNH, k_SKH, v_SKH, **options)

    return run


def confined_to(backends: Iterable[str]) -> AbstractContextManager[Any]:
    """Let PyTorch choose among these only, in this order."""
    context: AbstractContextManager[Any] = sdpa_kernel([getattr(SDPBackend, name) for name in backends], True)
    return context


def fastest(device: torch.device, queries: int, keys: int) -> AbstractContextManager[Any]:
    """cuDNN first where it is the fastest and to be trusted; elsewhere PyTorch's own order."""
    if device.type != "cuda" or not _prefers_cudnn(device):
        return nullcontext()
    if (torch.backends.cudnn.version() or 0) < CUDNN_MENDED and (queries % CUDNN_BLOCK or keys % CUDNN_BLOCK):
        return nullcontext()
    return confined_to(CUDNN_FIRST)


@lru_cache(maxsize=64)
def _prefers_cudnn(device: torch.device) -> bool:
    """Hopper and Blackwell of data centres, for which cuDNN has kernels of their own."""
    return torch.cuda.get_device_capability(device)[0] in (9, 10)
