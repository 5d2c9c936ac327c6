"""The meaning of ``attention``, written to be read; every other provider is compared with it.

Low precision is treated as matrix units treat it: both products take and give the activations' dtype, the softmax
between them is float32. It builds the whole score matrix of a document, so memory grows with its length squared.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor

from evocore.kernels.attention.masks import visible
from evocore.ops.attention import CuSeqlens


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
    group = q_TNH.shape[1] // k_SKH.shape[1]
    k_SNH, v_SNH = k_SKH.repeat_interleave(group, 1), v_SKH.repeat_interleave(group, 1)
    scale = 1 / math.sqrt(q_TNH.shape[-1]) if scale is None else scale
    pieces = [q_TNH[:0]]
    for (start, end), (k_start, k_end) in zip(pairwise(q_documents.host), pairwise(k_documents.host), strict=True):
        q_NmH = q_TNH[start:end].transpose(0, 1)
        k_NnH = k_SNH[k_start:k_end].transpose(0, 1)
        v_NnH = v_SNH[k_start:k_end].transpose(0, 1)
        scores = (q_NmH @ k_NnH.mT).to(torch.promote_types(q_TNH.dtype, torch.float32)) * scale
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        if causal:
            hidden = ~visible(end - start, k_end - k_start, window, q_TNH.device)
            scores = scores.masked_fill(hidden, -math.inf)
        pieces.append((scores.softmax(-1).to(v_SNH.dtype) @ v_NnH).transpose(0, 1))
    return torch.cat(pieces)
