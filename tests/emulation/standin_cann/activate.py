"""Puts the Python side of the stand-in into a process; PyTorch calls this at the end of its import."""

from __future__ import annotations

from typing import Any

_alive: list[Any] = []  # what must not be collected while the process runs: C code holds its addresses


def activate() -> None:
    """Register the kernels of aten and of aclnn functions, once."""
    if _alive:
        return
    import torch_npu  # noqa: F401 - first: it registers what is replaced
    from standin_cann import aten, kernels_attention, kernels_basic, kernels_elementwise, kernels_experts
    from standin_cann.opapi import Kernels

    kernels = Kernels()
    for module in (kernels_attention, kernels_basic, kernels_elementwise, kernels_experts):
        for name, kernel in module.KERNELS.items():
            kernels.bind(name, kernel)
    _alive.extend((aten.register(), kernels))
