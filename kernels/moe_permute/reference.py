"""The meaning of ``moe_permute`` and ``moe_unpermute``, written to be read; other providers are compared with it.

Dropped choices are masked, not multiplied by 0, so that whatever stands in their rows or gradients stays there.
"""

import torch
from torch import Tensor

from evocore.ops.moe import Permutation, permutation_of


def moe_permute(x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, Permutation]:
    permutation = permutation_of(experts_TK, experts)
    compute = torch.promote_types(x_TD.dtype, torch.float32)  # of the sum that is the gradient of expand
    choices_TKD = x_TD.to(compute)[:, None].expand(*experts_TK.shape, x_TD.shape[1])
    kept_TK1 = (experts_TK >= 0)[..., None]
    choices_RD = choices_TKD.where(kept_TK1, 0).flatten(0, 1)
    return choices_RD[permutation.source_R.long()].to(x_TD.dtype), permutation


def moe_unpermute(rows_RD: Tensor, permutation: Permutation, weights_TK: Tensor) -> Tensor:
    compute = torch.promote_types(rows_RD.dtype, torch.float32)
    kept_TK = permutation.row_TK < permutation.groups.ends_E[-1]
    choices_TKD = rows_RD.to(compute)[permutation.row_TK.long()].where(kept_TK[..., None], 0)
    weights_TK1 = weights_TK.to(compute).where(kept_TK, 0)[..., None]
    return (weights_TK1 * choices_TKD).sum(1).to(rows_RD.dtype)
