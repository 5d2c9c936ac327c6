"""Device memory: blocks of host memory under tensors whose device is npu.

PyTorch lets a device be written in Python but gives it no allocator. What it has is DLPack: a capsule of a host
tensor whose device type is overwritten comes back as an ordinary tensor of the device over the same memory, which it
owns.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch

EXTENSION_DEVICE = 12
"""kDLExtDev of DLPack, which PyTorch reads as the device that is registered by name."""
DEVICE_TYPE_AT, DEVICE_INDEX_AT = 8, 12
"""Bytes into a DLManagedTensor at which two 32-bit numbers say where the memory is."""
ALIGNMENT = 512
"""Bytes to which the device's allocator rounds."""

_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class Figures:
    """Bytes in use and the most that there were, as tensors come and go."""

    def __init__(self) -> None:
        self.allocated = self.peak = 0

    def add(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)


FIGURES = Figures()
"""Of this process, whose one device this is."""


class _Block(bytearray):
    """Memory that tells when it is given back, which is when the last tensor over it is gone."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        FIGURES.add(len(self))

    def __del__(self) -> None:
        FIGURES.add(-len(self))


def new_tensor(sizes: Sequence[int], strides: Sequence[int], dtype: torch.dtype, index: int) -> torch.Tensor:
    """A tensor on ``npu:index`` that holds NaN, or the largest integer: nobody may rely on fresh memory.

    Raises:
        RuntimeError: for float64, which most of the device's operators refuse. Real memory would take it; here it is
            found where it comes to the device.
    """
    if dtype in (torch.float64, torch.complex128):
        raise RuntimeError(f"{dtype} on the NPU: its operators know no double precision")
    elements = 0 if 0 in sizes else 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    if elements:
        size = -(-elements * dtype.itemsize // ALIGNMENT) * ALIGNMENT
        host = torch.frombuffer(_Block(size), dtype=dtype, count=elements)
        if dtype.is_floating_point or dtype.is_complex:
            host.fill_(math.nan)
        elif dtype != torch.bool:
            host.fill_(torch.iinfo(dtype).max)
        host = host.as_strided(sizes, strides)
    else:
        host = torch.empty_strided(sizes, strides, dtype=dtype)
    return _on_device(host, index)


def _on_device(host: torch.Tensor, index: int) -> torch.Tensor:
    capsule = torch._C._to_dlpack(host)
    address = _pointer_in(capsule, b"dltensor")
    ctypes.c_int32.from_address(address + DEVICE_TYPE_AT).value = EXTENSION_DEVICE
    ctypes.c_int32.from_address(address + DEVICE_INDEX_AT).value = index
    tensor: torch.Tensor = torch._C._from_dlpack(capsule)
    return tensor
