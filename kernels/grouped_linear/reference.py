"""The meaning of ``grouped_linear``, written to be read; every other provider is compared with it."""

import torch
from torch import Tensor

from evocore.ops.grouped_linear import Groups


def grouped_linear(x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor:
    compute = torch.promote_types(x_RD.dtype, torch.float32)
    sizes = groups.sizes()
    *parts, nobodys_ND = x_RD.to(compute).split([*sizes, len(x_RD) - sum(sizes)])
    ys = [part @ weight_FD.T for part, weight_FD in zip(parts, weight_EFD.to(compute), strict=True)]
    nothing_NF = nobodys_ND.new_zeros(len(nobodys_ND), weight_EFD.shape[1])
    return torch.cat([*ys, nothing_NF]).to(x_RD.dtype)
