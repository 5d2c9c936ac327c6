"""``attention`` by the best that PyTorch itself has on a GPU, decided by the lengths that the host knows.

Documents of one length are one dense call, for which there are faster kernels (cuDNN's on Hopper); of several lengths
or with a window they are packed in one launch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from evocore.kernels.attention import varlen
from evocore.kernels.attention.documents import heads_first
from evocore.kernels.attention.packed import readable
from evocore.kernels.attention.sdpa import fastest
from evocore.ops.attention import CuSeqlens

_packed = varlen.attention(deterministic=False)


def attention(
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    *,
    q_documents: CuSeqlens,
    k_documents: CuSeqlens,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    assert softcap is None, "refused by supports"
    if _is_dense(q_documents, k_documents, causal, window):
        return _dense(q_TNH, k_SKH, v_SKH, len(q_documents.lengths), causal, scale)
    return _packed(
        q_TNH,
        k_SKH,
        v_SKH,
        q_documents=q_documents,
        k_documents=k_documents,
        causal=causal,
        window=window,
        scale=scale,
    )


def _is_dense(q_documents: CuSeqlens, k_documents: CuSeqlens, causal: bool, window: int | None) -> bool:
    """Whether all documents have one length, and a mask that scaled_dot_product_attention has a word for."""
    for documents in (q_documents, k_documents):
        if documents.total == 0 or documents.longest * len(documents.lengths) != documents.total:
            return False
    if not causal:
        return True
    reaches_all = window is None or window >= k_documents.longest
    return reaches_all and q_documents.longest == k_documents.longest


def _dense(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, count: int, causal: bool, scale: float | None) -> Tensor:
    q, k, v = (heads_first(readable(x), count) for x in (q_TNH, k_SKH, v_SKH))
    with fastest(q.device, q.shape[2], k.shape[2]):
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
    return out.transpose(1, 2).flatten(0, 1)
