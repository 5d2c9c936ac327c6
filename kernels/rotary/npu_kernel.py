"""``rotary`` by the NPU's fused operator.

It computes in the dtype of its input and casts the angles to it, where the contract asks for float32; half-precision
activations are widened for it. The operator wants cosines and sines of the full width of a head.
"""

import torch
import torch_npu
from torch import Tensor


def rotary(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, interleaved: bool = False) -> Tensor:
    if x_TNH.numel() == 0:
        return x_TNH.clone()
    width = 2 * cos_TP.shape[1]
    cos, sin = (_full_width(angles_TP, interleaved) for angles_TP in (cos_TP, sin_TP))
    turned, rest = x_TNH[..., :width], x_TNH[..., width:]
    out = torch_npu.npu_rotary_mul(
        turned.float().contiguous(), cos, sin, rotary_mode="interleave" if interleaved else "half"
    ).to(x_TNH.dtype)
    return torch.cat((out, rest), -1) if rest.shape[-1] else out


def _full_width(angles_TP: Tensor, interleaved: bool) -> Tensor:
    """``[T, P]`` to ``[T, 1, 2 P]``: each angle beside both features of its pair."""
    both = angles_TP.repeat_interleave(2, -1) if interleaved else torch.cat((angles_TP, angles_TP), -1)
    return both[:, None]
