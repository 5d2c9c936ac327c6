"""Gate and up projection as one tensor, for operators that want them side by side."""

import torch
from torch import Tensor


def side_by_side(gate_TF: Tensor, up_TF: Tensor) -> Tensor:
    """``[T, 2 F]``: a view if they are the two halves of one fused projection, as they mostly are; else a copy."""
    tokens, width = gate_TF.shape
    halves = (
        gate_TF.dtype == up_TF.dtype
        and gate_TF.stride() == up_TF.stride() == (2 * width, 1)
        and gate_TF.untyped_storage().data_ptr() == up_TF.untyped_storage().data_ptr()
        and up_TF.storage_offset() == gate_TF.storage_offset() + width
    )
    if halves:
        return gate_TF.as_strided((tokens, 2 * width), (2 * width, 1))
    return torch.cat((gate_TF, up_TF), -1)
