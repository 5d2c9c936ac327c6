"""The communication library: gloo over the memory of the device, within the types that HCCL takes.

What is refused is what torch_npu's own process group was seen to refuse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from python_npu.ledger import LEDGER
from standin_cann.host import CPU, host_view
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

NEVER_REDUCED = frozenset({torch.float64, torch.uint16, torch.float8_e4m3fn, torch.float8_e5m2, torch.complex128})
NOT_SCATTERED = NEVER_REDUCED | {torch.uint8, torch.bool, torch.complex64}
REFUSED = {
    "allreduce_": NEVER_REDUCED,
    "reduce_": NEVER_REDUCED | {torch.complex64},
    "reduce_scatter_": NOT_SCATTERED,
    "_reduce_scatter_base_": NOT_SCATTERED,
}
REDUCING = frozenset({"allreduce_", "allreduce_coalesced_", *REFUSED})


class Options:
    """Of a process group; torch_npu keeps what it is given."""

    def __init__(self) -> None:
        self.hccl_config: dict[str, Any] = {}


def register() -> torch.library.Library:
    """Make ``hccl`` known; it is there as long as what is returned lives."""
    dist.Backend.register_backend("hccl", _new_group, extended_api=True, devices=["npu"])
    library = torch.library.Library("c10d", "IMPL")  # noqa: TOR901 - kept by the caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they replace PyTorch's kernels is the point
        for full in torch._C._dispatch_get_all_op_names():
            namespace, _, name = full.partition("::")
            if namespace == "c10d" and torch._C._dispatch_has_kernel_for_dispatch_key(full, "PrivateUse1"):
                operator = getattr(torch.ops.c10d, name).default
                library.impl(name, _over_host(name, operator), "PrivateUse1", allow_override=True)
    return library


def _new_group(given: Any, options: Any) -> dist.ProcessGroupGloo:
    if options is not None and not isinstance(options, Options):
        raise RuntimeError(f"hccl takes ProcessGroupHCCL.Options, not {type(options).__name__}")
    return dist.ProcessGroupGloo(given.store, given.group_rank, given.group_size, given.timeout)


def _over_host(name: str, operator: Any) -> Callable[..., Any]:
    def kernel(*arguments: Any, **named: Any) -> Any:
        LEDGER.operators[f"c10d.{name}"] += 1
        _check(name, (arguments, named))
        call = _Call(sums=name in REDUCING)
        return call.finish(operator(*tree_map(call.to_host, arguments), **tree_map(call.to_host, named)))

    return kernel


class _Call:
    """One call on its way to gloo and back.

    gloo knows no int16, which HCCL takes. It is sent as a type of the same size, or added up in int32: then the call
    waits for all ranks, also where it is asked not to.
    """

    def __init__(self, sums: bool) -> None:
        self._sums = sums
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._widened: list[tuple[Tensor, Tensor]] = []

    def to_host(self, value: Any) -> Any:
        if isinstance(value, torch.device):
            return CPU
        if not isinstance(value, Tensor) or value.device.type != "npu":
            return value
        view = host_view(value)
        if value.dtype == torch.int16:
            narrow, view = view, view.int() if self._sums else view.view(torch.float16)
            if self._sums:
                self._widened.append((view, narrow))
        view.owner = value  # type: ignore[attr-defined] - gloo works on the view after this call
        self._pairs.append((view, value))
        return view

    def finish(self, results: Any) -> Any:
        """What the call returns, its tensors being those of the device again."""
        if self._widened:
            work = results[-1] if isinstance(results, tuple | list) else results
            dist.Work.unbox(work).wait()
            # What the call writes to comes first among its arguments, and may be a part of the others.
            for wide, narrow in reversed(self._widened):
                narrow.copy_(wide)
        return tree_map(self._to_device, results)

    def _to_device(self, value: Any) -> Any:
        return next((tensor for view, tensor in self._pairs if view is value), value)


def _check(name: str, given: Any) -> None:
    leaves = tree_leaves(given)
    for tensor in (leaf for leaf in leaves if isinstance(leaf, Tensor)):
        if tensor.dtype in REFUSED.get(name, ()):
            raise RuntimeError(f"Unsupported data type at index for HCCL: {tensor.dtype} in {name}")
        if not tensor.is_contiguous():
            raise RuntimeError("Tensors must be contiguous")
