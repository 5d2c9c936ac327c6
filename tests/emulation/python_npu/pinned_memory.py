"""Pinned memory of the host: PyTorch asks the device for it, which one that is written in Python cannot give.

A tensor that is pinned here is a copy that is remembered as pinned as long as it lives. ``pin_memory=True`` where a
tensor is made stays an error.
"""

from __future__ import annotations

import warnings
import weakref

import torch

_pinned: set[int] = set()
"""Addresses of the memory that was pinned and is still held."""


def register() -> torch.library.Library:
    """It is there as long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL")  # noqa: TOR901 - kept by the caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they replace PyTorch's kernels is the point
        library.impl("_pin_memory", _pin_memory, "CPU", allow_override=True)
        library.impl("is_pinned", _is_pinned, "CPU", allow_override=True)
    return library


def _pin_memory(tensor: torch.Tensor, device: torch.device | None = None) -> torch.Tensor:
    copy = tensor.clone()
    storage = copy.untyped_storage()
    _pinned.add(storage.data_ptr())
    weakref.finalize(storage, _pinned.discard, storage.data_ptr())
    return copy


def _is_pinned(tensor: torch.Tensor, device: torch.device | None = None) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned
