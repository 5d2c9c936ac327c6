"""Binds Python functions as the kernels of aclnn functions; tensors arrive as CPU tensors over the device's memory.

A kernel that raises makes the aclnn function fail as CANN does: torch_npu raises a RuntimeError that ends with its
text.
"""

from __future__ import annotations

import ctypes
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from standin_cann.host import memory_view
from standin_cann.opapi_table import parameters_of

PARAMETER_INVALID = 161002
"""ACLNN_ERR_PARAM_INVALID"""

DTYPES = {
    0: torch.float32,
    1: torch.float16,
    2: torch.int8,
    3: torch.int32,
    4: torch.uint8,
    6: torch.int16,
    9: torch.int64,
    11: torch.float64,
    12: torch.bool,
    27: torch.bfloat16,
}
"""PyTorch's dtype of an aclDataType."""

calls: Counter[str] = Counter()
"""How often each aclnn function ran in this process, so that a test can tell that it was the one asked for."""


class ConstraintError(ValueError):
    """An argument that the operator of CANN does not take."""


def require(condition: bool, constraint: str) -> None:
    """Refuse as CANN would unless the constraint holds."""
    if not condition:
        raise ConstraintError(constraint)


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("dims", ctypes.c_int64),
        ("sizes", ctypes.c_int64 * 8),
        ("strides", ctypes.c_int64 * 8),
        ("offset", ctypes.c_int64),
        ("type", ctypes.c_int32),
        ("data", ctypes.c_void_p),
    ]


class _List(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int64), ("items", ctypes.c_void_p)]


class _Scalar(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("value", ctypes.c_char * 16)]


def _tensor(pointer: int | None) -> torch.Tensor | None:
    if not pointer:
        return None
    described = _Tensor.from_address(pointer)
    require(described.type in DTYPES, f"no operator takes the aclDataType {described.type}")
    sizes, strides = described.sizes[: described.dims], described.strides[: described.dims]
    return memory_view(described.data, DTYPES[described.type], sizes, strides, described.offset)


def _tensors(pointer: int | None) -> list[torch.Tensor | None]:
    if not pointer:
        return []
    described = _List.from_address(pointer)
    items = (ctypes.c_void_p * described.count).from_address(described.items)
    return [_tensor(item) for item in items]


def _ints(pointer: int | None) -> list[int]:
    if not pointer:
        return []
    described = _List.from_address(pointer)
    return list((ctypes.c_int64 * described.count).from_address(described.items))


def _scalar(pointer: int | None) -> Any:
    if not pointer:
        return None
    address = pointer + _Scalar.value.offset
    return memory_view(address, DTYPES[_Scalar.from_address(pointer).type], [], [], 0).item()


C_TYPES: dict[str, Any] = {
    "tensor": ctypes.c_void_p,
    "tensors": ctypes.c_void_p,
    "ints": ctypes.c_void_p,
    "scalar": ctypes.c_void_p,
    "text": ctypes.c_char_p,
    "double": ctypes.c_double,
    "float": ctypes.c_float,
    "int": ctypes.c_int64,
    "bool": ctypes.c_bool,
    "type": ctypes.c_int,
}

PYTHON_VALUES: dict[str, Callable[[Any], Any]] = {
    "tensor": _tensor,
    "tensors": _tensors,
    "ints": _ints,
    "scalar": _scalar,
    "text": bytes.decode,
    "double": float,
    "float": float,
    "int": int,
    "bool": bool,
    "type": lambda code: DTYPES[code],
}


class Kernels:
    """The kernels of one process. ctypes' callbacks live as long as this object."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libopapi.so")
        self._fail = ctypes.CDLL("libascendcl.so").standin_set_error
        self._callbacks: list[Any] = []

    def bind(self, name: str, kernel: Callable[..., None]) -> None:
        """Let ``kernel`` serve an aclnn function; it is called by the names of the table and fills its outputs."""
        kinds, names = zip(*parameters_of(name), strict=True)

        def call(*values: Any) -> int:
            calls[name] += 1
            try:
                with torch._C._AutoDispatchBelowAutograd():
                    arguments = (PYTHON_VALUES[kind](value) for kind, value in zip(kinds, values, strict=True))
                    kernel(**dict(zip(names, arguments, strict=True)))
            except ConstraintError as error:
                return self._refuse(f"{name}: {error}")
            except Exception:  # noqa: BLE001 - C code called this: the exception cannot pass, so its text does
                return self._refuse(f"{name}: {traceback.format_exc()}")
            return 0

        callback = ctypes.CFUNCTYPE(ctypes.c_int, *(C_TYPES[kind] for kind in kinds))(call)
        self._callbacks.append(callback)
        pointer = ctypes.c_void_p.in_dll(self._library, f"standin_{name}")
        pointer.value = ctypes.cast(callback, ctypes.c_void_p).value

    def _refuse(self, text: str) -> int:
        self._fail(b"%s", text.encode())
        return PARAMETER_INVALID
