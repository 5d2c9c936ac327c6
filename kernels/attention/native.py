"""``attention`` by PyTorch's scaled_dot_product_attention: on any device that PyTorch drives.

It is called document by document, so that what lies between documents is never computed. Its own causal mask lets the
first query see the first key; where queries and keys differ in number a mask is therefore given. A window is cut into
blocks of queries, each with the few blocks of keys that it sees.

``split`` and ``cat`` are used rather than slices: the gradient of a slice is as large as the whole tensor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from evocore.kernels.attention.documents import heads_first, runs
from evocore.kernels.attention.masks import visible
from evocore.kernels.attention.packed import nothing
from evocore.ops.attention import CuSeqlens

SHORTEST, LONGEST = 64, 512
"""Queries of a block of a window, a quarter of the window between these: fewer waste less, more are faster each."""


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
    zeros_TNH = nothing(q_TNH, k_SKH, v_SKH)
    if zeros_TNH is not None:
        return zeros_TNH
    parts = runs(q_documents, k_documents)
    q_parts = q_TNH.split([run.documents * run.queries for run in parts])
    k_sizes = [run.documents * run.keys for run in parts]
    pieces = []
    for run, *tensors in zip(parts, q_parts, k_SKH.split(k_sizes), v_SKH.split(k_sizes), strict=True):
        if run.queries == 0:
            continue
        q, k, v = (heads_first(tensor, run.documents) for tensor in tensors)
        if run.keys == 0:
            out = torch.zeros_like(q)
        elif causal and window is not None and window < run.keys:
            out = _windowed(q, k, v, window, scale)
        else:
            out = _dense(q, k, v, causal, scale)
        pieces.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def _dense(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float | None) -> Tensor:
    """All of ``[count, heads, tokens, H]``; the keys are those of the documents or, if causal, their last ones."""
    queries, keys = q.shape[2], k.shape[2]
    if not causal or queries == 1:  # the last query sees every key
        return _sdpa(q, k, v, None, False, scale)
    if queries == keys:
        return _sdpa(q, k, v, None, True, scale)
    return _sdpa(q, k, v, visible(queries, keys, None, q.device), False, scale)


def _windowed(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float | None) -> Tensor:
    """Blocks are counted from the end, where queries and keys are aligned."""
    block = min(max(window // 4, SHORTEST), LONGEST)
    reach = -(-(window - 1) // block)  # blocks of keys before its own that a block of queries sees
    q_blocks = q.split(_sizes(q.shape[2], block), 2)
    k_blocks, v_blocks = (x.split(_sizes(x.shape[2], block), 2) for x in (k, v))
    out = []
    for index, q_block in enumerate(q_blocks, len(k_blocks) - len(q_blocks)):
        seen = slice(max(index - reach, 0), index + 1)
        k_seen, v_seen = torch.cat(k_blocks[seen], 2), torch.cat(v_blocks[seen], 2)
        mask = visible(q_block.shape[2], k_seen.shape[2], window, q.device)
        out.append(_sdpa(q_block, k_seen, v_seen, mask, False, scale))
    return torch.cat(out, 2)


def _sizes(tokens: int, block: int) -> list[int]:
    """Full blocks at the end, what is left over at the start."""
    first = tokens % block
    return [first] * (first > 0) + [block] * (tokens // block)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=gqa)
