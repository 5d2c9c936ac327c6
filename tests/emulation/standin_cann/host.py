"""Device memory as the host sees it: the stand-in's "device" addresses are addresses of this process."""

from __future__ import annotations

from collections.abc import Sequence

import torch

CPU = torch.device("cpu")


def memory_view(
    address: int, dtype: torch.dtype, sizes: Sequence[int], strides: Sequence[int], offset: int
) -> torch.Tensor:
    """A CPU tensor over memory that somebody else owns; valid as long as that memory is."""
    if 0 in sizes or not address:
        return torch.empty_strided(sizes, strides, dtype=dtype)
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    storage = torch._C._construct_storage_from_data_pointer(address, CPU, (last + 1) * dtype.itemsize)
    return torch.empty(0, dtype=dtype).set_(storage, offset, sizes, strides)


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the memory of an npu tensor."""
    storage = tensor.untyped_storage()
    view = memory_view(storage.data_ptr(), tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))
    return view.conj() if tensor.is_conj() else view


def device_copy(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A new npu tensor with the values and strides of a CPU tensor."""
    made = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device)
    host_view(made).copy_(tensor)
    return made
