"""Kernels for any device that PyTorch drives: what a new backend offers before it has any of its own.

Each is written in PyTorch operators and moves nothing to the host, so that a device plug-in can offer all of them and
then beat them one by one.
"""

from __future__ import annotations

import torch

from evocore.ops.kernel import Kernel

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16})

_TARGETS = {
    "attention": "attention.reference:attention",
    "rms_norm": "rms_norm.reference:rms_norm",
    "add_rms_norm": "rms_norm.reference:add_rms_norm",
    "layer_norm": "layer_norm.reference:layer_norm",
    "rotary": "rotary.reference:rotary",
    "swiglu": "swiglu.reference:swiglu",
    "geglu": "geglu.reference:geglu",
    "cross_entropy": "cross_entropy.reference:cross_entropy",
    "linear_cross_entropy": "linear_cross_entropy.reference:linear_cross_entropy",
    "adamw": "adamw.reference:adamw",
}


def portable_kernels(device_type: str, dtypes: frozenset[torch.dtype] = _FLOATS) -> list[Kernel]:
    """One kernel per op: the reference, under the provider name "portable".

    Args:
        device_type: PyTorch's name of the device.
        dtypes: those that the device computes in.
    """
    devices = frozenset({device_type})
    return [
        Kernel(op, "portable", devices, f"evocore.kernels.{target}", dtypes, priority=-90)
        for op, target in _TARGETS.items()
    ]
