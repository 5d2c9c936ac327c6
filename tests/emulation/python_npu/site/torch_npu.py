"""A stand-in for torch_npu: importing it registers a device named npu, as importing the real package does.

It needs no driver and no compiler. Its operators have torch_npu's schemas; see ``tests/emulation/README.md`` for what
it shows and what it cannot show.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from python_npu import runtime as npu
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

if torch.accelerator.is_available():
    raise RuntimeError("Two accelerators cannot be used at the same time: this machine has another one")


class _Hooks(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined]
    def is_available(self) -> bool:
        return npu.is_available()

    def has_primary_context(self, index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Guard(torch._C._acc.DeviceGuard):  # type: ignore[name-defined]
    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


_callbacks = _Hooks(), _Guard()  # PyTorch holds their addresses
_setup_privateuseone_for_python_backend("npu", npu, *_callbacks)

from python_npu import autocast, fused, hccl, operators, pinned_memory  # noqa: E402 - they speak of the device

_registered = [part.register() for part in (operators, autocast, pinned_memory, fused, hccl)]
_C = SimpleNamespace(_distributed_c10d=SimpleNamespace(ProcessGroupHCCL=SimpleNamespace(Options=hccl.Options)))

_plain_repr = torch.Tensor.__repr__


def _repr(tensor: torch.Tensor, *, tensor_contents: Any = None) -> str:
    """Written on the host, as torch_npu does it: PyTorch would compute in float64 where the tensor is."""
    on_host = tensor.detach().cpu() if tensor.device.type == "npu" else tensor
    return _plain_repr(on_host, tensor_contents=tensor_contents)


torch.Tensor.__repr__ = _repr  # type: ignore[method-assign, assignment]


def __getattr__(name: str) -> Any:
    if name in fused.DESCRIPTIONS:
        return getattr(torch.ops.npu, name)
    raise AttributeError(f"this stand-in for torch_npu has no {name}")
