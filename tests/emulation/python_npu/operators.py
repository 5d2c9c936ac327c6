"""PyTorch's own operators on the device: views by the kernels that need no memory, all others on host memory.

How an operator runs on the host is shared with the stand-in for CANN. What is added here is what torch_npu brings of
its own there: allocation, views, and a note of every value that the host waits for.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from python_npu.ledger import LEDGER
from python_npu.memory_blocks import new_tensor
from standin_cann.aten import SPECIAL, on_host

VIEWS = frozenset({"as_strided", "view", "_reshape_alias", "unfold", "view_as_real", "view_as_complex"})
"""Views that PyTorch leaves to each device; the others are made of these."""
WAITING = frozenset(
    {
        *("_local_scalar_dense", "equal", "nonzero", "masked_select", "repeat_interleave.Tensor", "bincount"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
    }
)
"""Operators with a result whose value, or whose size, the host must know."""
MASKING = frozenset({"index.Tensor", "index_put_", "_index_put_impl_"})
"""Operators that count the true elements of a mask if they are given one."""

_HOST = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_set_storage = torch.ops.aten.set_.source_Storage_storage_offset


def register() -> torch.library.Library:
    """Give the device all operators that the CPU has; they are there as long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL")  # noqa: TOR901 - kept by the caller
    own = {**SPECIAL, **_OWN}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a few kernels replace PyTorch's own, which is said of each
        for full in torch._C._dispatch_get_all_op_names():
            namespace, _, name = full.partition("::")
            base, _, overload = name.partition(".")
            packet = getattr(torch.ops.aten, base, None) if namespace == "aten" else None
            operator = getattr(packet, overload or "default", None)
            if operator is None:
                continue
            if name in own:
                kernel = own[name]
            elif name in VIEWS:
                kernel = _on_metadata(operator)
            elif torch._C._dispatch_has_kernel_for_dispatch_key(full, "CPU"):
                kernel = on_host(operator)
            else:
                continue
            library.impl(name, _noted(name, kernel), "PrivateUse1")
    return library


def _noted(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    def noted(*arguments: Any, **named: Any) -> Any:
        LEDGER.operators[name] += 1
        if _waits(name, arguments, named):
            LEDGER.record_wait(name)
        return kernel(*arguments, **named)

    return noted


def _waits(name: str, arguments: Sequence[Any], named: dict[str, Any]) -> bool:
    if name in WAITING:
        return True
    if name == "_to_copy":
        to = named.get("device")
        return to is not None and to.type == "cpu" and not named.get("non_blocking")
    if name == "copy_":
        destination, source = arguments[:2]
        non_blocking = named.get("non_blocking") or (len(arguments) > 2 and arguments[2])
        return destination.device.type == "cpu" and source.device.type == "npu" and not non_blocking
    if name in MASKING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1])
    return False


def _on_metadata(operator: Any) -> Callable[..., Any]:
    def kernel(*arguments: Any, **named: Any) -> Any:
        return operator.redispatch(_HOST, *arguments, **named)

    return kernel


# --- memory ---------------------------------------------------------------------------------------------------------


def _index(device: torch.device | None) -> int:
    return torch.npu.current_device() if device is None or device.index is None else device.index


def _empty(
    size: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    strides = torch.empty(size, device="meta", memory_format=memory_format).stride()
    return new_tensor(size, strides, dtype or torch.get_default_dtype(), _index(device))


def _empty_strided(
    size: Sequence[int],
    stride: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
) -> torch.Tensor:
    return new_tensor(size, stride, dtype or torch.get_default_dtype(), _index(device))


def _resize(
    tensor: torch.Tensor, size: Sequence[int], *, memory_format: torch.memory_format | None = None
) -> torch.Tensor:
    """In place; what no longer fits moves to new memory, as a result of unknown size does."""
    made = _empty(size, dtype=tensor.dtype, device=tensor.device, memory_format=memory_format)
    if tensor.untyped_storage().nbytes() >= made.untyped_storage().nbytes():
        return _set(tensor, tensor.untyped_storage(), tensor.storage_offset(), size, made.stride())
    if tensor.numel():
        raise RuntimeError("this stand-in does not move a tensor that holds something")
    return _set(tensor, made.untyped_storage(), 0, size, made.stride())


def _set(
    tensor: torch.Tensor, source: Any, offset: int, size: Sequence[int], stride: Sequence[int] = ()
) -> torch.Tensor:
    done: torch.Tensor = _set_storage.redispatch(_HOST, tensor, source, offset, size, stride)
    return done


_OWN: dict[str, Callable[..., Any]] = {
    "empty.memory_format": _empty,
    "empty_strided": _empty_strided,
    "resize_": _resize,
    "set_": lambda tensor: _resize(tensor, [0]),
    "set_.source_Tensor": lambda tensor, source: _set(
        tensor, source.untyped_storage(), source.storage_offset(), source.size(), source.stride()
    ),
    "set_.source_Storage": lambda tensor, source: _set(tensor, source, 0, [len(source) // tensor.itemsize], [1]),
    "set_.source_Storage_storage_offset": _set,
    "record_stream": lambda tensor, stream: None,
    "is_pinned": lambda tensor, device=None: False,
}
