"""The reference of every op as kernel records for any device: where a new backend starts.

References are plain PyTorch and move nothing to the host, so a device plug-in can offer all of them and then beat
them one by one.
"""

from __future__ import annotations

import torch

from evocore.ops.kernel import Kernel

FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})

_FOLDERS = {
    "attention": "attention",
    "attention_block": "attention",
    "rms_norm": "rms_norm",
    "add_rms_norm": "rms_norm",
    "layer_norm": "layer_norm",
    "rotary": "rotary",
    "swiglu": "swiglu",
    "geglu": "geglu",
    "cross_entropy": "cross_entropy",
    "cross_entropy_shard": "cross_entropy",
    "linear_cross_entropy": "linear_cross_entropy",
    "adamw": "adamw",
    "grouped_linear": "grouped_linear",
    "moe_permute": "moe_permute",
    "moe_unpermute": "moe_permute",
}


def reference_kernels(device_type: str, dtypes: frozenset[torch.dtype] = FLOATS) -> list[Kernel]:
    """One kernel per op, provider "reference", of the lowest priority.

    Args:
        device_type: PyTorch's name of the device.
        dtypes: those that the device computes in. ``adamw`` serves the wide ones among them only: it updates master
            weights.
    """
    wide = frozenset(dtype for dtype in dtypes if dtype.itemsize >= 4)
    return [
        Kernel(
            op,
            "reference",
            frozenset({device_type}),
            f"evocore.kernels.{folder}.reference:{op}",
            wide if op == "adamw" else dtypes,
            priority=-100,
        )
        for op, folder in _FOLDERS.items()
    ]
