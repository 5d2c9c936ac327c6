"""The meaning of ``rotary``, written to be read; every other provider is compared with it."""

import torch
from torch import Tensor


def rotary(x_TNH: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, interleaved: bool = False) -> Tensor:
    compute = torch.promote_types(x_TNH.dtype, torch.float32)
    cos, sin = cos_TP[:, None].to(compute), sin_TP[:, None].to(compute)
    width = 2 * cos_TP.shape[-1]
    features = x_TNH[..., :width].to(compute)
    if interleaved:
        a, b = features[..., 0::2], features[..., 1::2]
    else:
        a, b = features.chunk(2, -1)
    turned = a * cos - b * sin, b * cos + a * sin
    joined = torch.stack(turned, -1).flatten(-2) if interleaved else torch.cat(turned, -1)
    return torch.cat((joined.to(x_TNH.dtype), x_TNH[..., width:]), -1)
