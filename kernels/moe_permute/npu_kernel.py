"""``moe_permute`` and ``moe_unpermute`` by the NPU's fused operators, which take bfloat16.

The sort happens in the operator. It knows no dropped choices: they are counted as an expert behind all others, and
their rows and weights are masked.
"""

import torch
import torch_npu
from torch import Tensor

from evocore.ops.grouped_linear import Groups
from evocore.ops.moe import Permutation


def moe_permute(x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, Permutation]:
    indices_TK = experts_TK.where(experts_TK >= 0, experts)
    if x_TD.numel() == 0:
        row_R = torch.arange(experts_TK.numel(), dtype=torch.int32, device=x_TD.device)
        return x_TD.repeat_interleave(experts_TK.shape[1], 0), _permutation(row_R, indices_TK, experts)
    rows_RD, row_R = torch_npu.npu_moe_token_permute(x_TD.contiguous(), indices_TK)
    permutation = _permutation(row_R, indices_TK, experts)
    nobody_R = torch.arange(len(rows_RD), device=rows_RD.device) >= permutation.groups.ends_E[-1]
    return rows_RD.masked_fill(nobody_R[:, None], 0), permutation


def moe_unpermute(rows_RD: Tensor, permutation: Permutation, weights_TK: Tensor) -> Tensor:
    kept_TK = permutation.row_TK < permutation.groups.ends_E[-1]
    if rows_RD.numel() == 0:
        return rows_RD.new_zeros(len(kept_TK), rows_RD.shape[1]) + rows_RD.sum() + 0 * weights_TK.sum()
    nobody_R = torch.arange(len(rows_RD), device=rows_RD.device) >= permutation.groups.ends_E[-1]
    y_TD: Tensor = torch_npu.npu_moe_token_unpermute(
        rows_RD.masked_fill(nobody_R[:, None], 0),  # whatever stands there, times a weight of 0, could still be nan
        permutation.row_TK.flatten(),
        probs=weights_TK.masked_fill(~kept_TK, 0).to(rows_RD.dtype),
    )
    return y_TD


def _permutation(row_R: Tensor, indices_TK: Tensor, experts: int) -> Permutation:
    source_R = torch.empty_like(row_R)
    source_R[row_R.long()] = torch.arange(len(row_R), dtype=row_R.dtype, device=row_R.device)
    sorted_R = indices_TK.flatten()[source_R.long()]
    ends_E = torch.searchsorted(sorted_R, torch.arange(1, experts + 1, device=sorted_R.device))
    return Permutation(row_R.view(indices_TK.shape), source_R, Groups(ends_E.int()))
