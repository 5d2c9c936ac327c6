"""Autocast: inside it, matrix products take their operands in the lower precision.

As torch_npu does it, by kernels for the dispatch key of autocast that cast and call the operator again; all other
operators pass through. Those that torch_npu computes in float32 there are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.library import Library, fallthrough_kernel
from torch.utils._pytree import tree_map

LOWERED = ("matmul", "mm", "mv", "bmm", "addmm", "addmv", "addr", "baddbmm", "addbmm", "linear")

_KEY = "AutocastPrivateUse1"
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)


def register() -> tuple[Library, Library]:
    """They are there as long as what is returned lives."""
    others, lowered = Library("_", "IMPL", _KEY), Library("aten", "IMPL", _KEY)  # noqa: TOR901 - kept by the caller
    others.fallback(fallthrough_kernel)
    for name in LOWERED:
        lowered.impl(name, _lowered(getattr(torch.ops.aten, name).default))
    return others, lowered


def _lowered(operator: Any) -> Callable[..., Any]:
    def cast(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.device.type == "npu" and value.dtype == torch.float32:
            return value.to(torch.get_autocast_dtype("npu"))
        return value

    def kernel(*arguments: Any, **named: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operator(*tree_map(cast, arguments), **tree_map(cast, named))

    return kernel
