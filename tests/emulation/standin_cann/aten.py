"""Kernels of PyTorch's own operators for the npu device: each runs PyTorch's CPU kernel on the device's memory.

torch_npu implements these some 1,100 operators by as many aclnn functions. What they compute is known; what matters
here is that torch_npu's device, allocator, streams, autograd formulas and fused operators are the real ones around
them. Kept as they are: views, allocation, and what torch_npu serves by an aclnn function that the stand-in has.
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch_npu
from standin_cann.host import CPU, device_copy, host_view

KEPT = frozenset(
    {
        # memory and streams
        *(
            "empty.memory_format",
            "empty_strided",
            "empty_like",
            "new_empty_strided",
            "resize_",
            "resize_as_",
            "is_set_to",
        ),
        *("set_", "set_.source_Storage", "set_.source_Storage_storage_offset", "set_.source_Tensor"),
        *("record_stream", "_pin_memory", "is_pinned", "as_strided_"),
        # fused operators, by aclnnFlashAttentionScore and aclnnApplyAdamWV2
        *("scaled_dot_product_attention", "_fused_adamw_"),
    }
)

ANY_DEVICE = ("copy_", "index", "_index_put_impl_", "_foreach_copy_")
"""Operators that take tensors of the host beside those of the device; all others refuse them, as on hardware."""

DRAW = 4
"""By how much a random operator advances the generator's offset at least, as torch_npu counts."""


def register() -> torch.library.Library:
    """Replace the kernels; they stay replaced as long as what is returned lives."""
    library = torch.library.Library("aten", "IMPL")  # noqa: TOR901 - kept by the caller
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch says of each that it was there before: that is the point
        for name, operator in _replaced():
            library.impl(name, SPECIAL.get(name) or on_host(operator), "PrivateUse1", allow_override=True)
    return library


def _replaced() -> Iterator[tuple[str, Any]]:
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, name = full.partition("::")
        base, _, overload = name.partition(".")
        packet = getattr(torch.ops.aten, base, None) if namespace == "aten" and name not in KEPT else None
        operator = getattr(packet, overload or "default", None)
        if operator is None or not torch._C._dispatch_has_kernel_for_dispatch_key(full, "PrivateUse1"):
            continue
        if not any(result.alias_info and not result.alias_info.is_write for result in operator._schema.returns):
            yield name, operator


class _Call:
    """One call on its way to the host and back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.device: torch.device | None = None
        self.originals: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.generator: torch.Generator | None = None
        self.strangers = False

    def to_host(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if value.device.type != "npu":
                self.strangers |= value.device.type == "cpu" and value.dim() > 0
                return value
            self.device = self.device or value.device
            view = host_view(value)
            self.originals[id(view)] = view, value  # the view is kept, so that its id stays its own
            return view
        if isinstance(value, list | tuple):
            return [self.to_host(item) for item in value]
        if isinstance(value, torch.device) and value.type == "npu":
            self.device = self.device or value
            return CPU
        if isinstance(value, torch.Generator):
            self.generator = value
            return None
        return value

    def result_holder(self, out: torch.Tensor) -> torch.Tensor:
        """An empty tensor to stand for ``out=``, which may have to be resized on the device."""
        self.device = self.device or out.device
        holder = torch.empty(0, dtype=out.dtype)
        self.originals[id(holder)] = holder, out
        return holder

    def where(self) -> torch.device:
        device = self.device or torch.device("npu")
        return torch.device("npu", torch.npu.current_device()) if device.index is None else device

    def to_device(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) not in self.originals:
                return device_copy(value, self.where()) if value.device.type == "cpu" else value
            original = self.originals[id(value)][1]
            if original.shape != value.shape:
                original.resize_(value.shape)
            if value.untyped_storage().data_ptr() != original.untyped_storage().data_ptr():  # a holder
                host_view(original).copy_(value)
            return original
        if isinstance(value, list | tuple):
            return type(value)(self.to_device(item) for item in value)
        return value


def on_host(operator: Any) -> Callable[..., Any]:
    """A kernel of the device that runs an operator on the host."""
    name = operator._schema.name.partition("::")[2]
    holders = {argument.name for argument in operator._schema.arguments if argument.is_out}
    mixes = name.startswith(ANY_DEVICE)
    random = torch.Tag.nondeterministic_seeded in operator.tags

    def kernel(*arguments: Any, **named: Any) -> Any:
        call = _Call(name)
        converted = [call.to_host(argument) for argument in arguments]
        converted_named = {
            key: call.result_holder(value)
            if key in holders and isinstance(value, torch.Tensor)
            else call.to_host(value)
            for key, value in named.items()
        }
        if call.strangers and not mixes:
            raise RuntimeError(
                f"{name}: Expected all tensors to be on the same device, but found at least two devices, "
                f"{call.where()} and cpu!"
            )
        draws = random or call.generator is not None
        with torch._C._AutoDispatchBelowAutograd():
            with _host_generator(call.generator, call.where()) if draws else nullcontext():
                result = operator(*converted, **converted_named)
        return call.to_device(result)

    return kernel


@contextmanager
def _host_generator(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """The host's generator, seeded from the seed and the offset of the device's, whose offset moves on."""
    state_of = torch_npu.npu.default_generators[device.index] if generator is None else generator
    seed, offset = struct.unpack("<QQ", bytes(state_of.get_state().tolist()))
    before = torch.get_rng_state()
    torch.default_generator.manual_seed((seed * 0x9E3779B97F4A7C15 + offset * 0xBF58476D1CE4E5B9) % 2**63)
    try:
        yield
    finally:
        torch.set_rng_state(before)
        moved = struct.pack("<QQ", seed, offset + DRAW)
        state_of.set_state(torch.frombuffer(bytearray(moved), dtype=torch.uint8))


# --- copies between devices, and what has no CPU kernel -------------------------------------------------------------


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return host_view(tensor) if tensor.device.type == "npu" else tensor


def _copy(destination: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    with torch._C._AutoDispatchBelowAutograd():
        _host(destination).copy_(_host(source))
    return destination


def _copy_from_and_resize(source: torch.Tensor, destination: torch.Tensor) -> torch.Tensor:
    if destination.shape != source.shape:
        destination.resize_(source.shape)
    return _copy(destination, source)


def _to_copy(
    tensor: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: torch.layout | None = None,
    device: torch.device | None = None,
    pin_memory: bool | None = None,
    non_blocking: bool = False,
    memory_format: torch.memory_format | None = None,
) -> torch.Tensor:
    to = tensor.device if device is None else torch.device(device)
    with torch._C._AutoDispatchBelowAutograd():
        made: torch.Tensor = torch.ops.aten._to_copy.default(
            _host(tensor), dtype=dtype or tensor.dtype, device=CPU, memory_format=memory_format
        )
    if to.type == "cpu":
        return made
    return device_copy(made, torch.device("npu", torch.npu.current_device()) if to.index is None else to)


def _item(tensor: torch.Tensor) -> Any:
    return host_view(tensor).item()


def _wide_product(product: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Matrix products with a dtype for the result, which the CPU has not."""

    def kernel(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype) -> torch.Tensor:
        return device_copy(product(host_view(a).to(out_dtype), host_view(b).to(out_dtype)), a.device)

    return kernel


def _matmul_backward(
    grad: torch.Tensor, a: torch.Tensor, b: torch.Tensor, mask: list[bool]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    grad_h, a_h, b_h = host_view(grad), host_view(a), host_view(b)
    a_2, b_2 = (a_h if a.dim() > 1 else a_h[None]), (b_h if b.dim() > 1 else b_h[:, None])
    grad_2 = grad_h if a.dim() > 1 else grad_h.unsqueeze(-1 if b.dim() == 1 else -2)
    grad_2 = grad_2 if b.dim() > 1 or a.dim() == 1 else grad_2.unsqueeze(-1)
    grad_2 = grad_2.reshape(1, 1) if a.dim() == b.dim() == 1 else grad_2
    found = ((grad_2 @ b_2.mT).sum_to_size(a_2.shape).view(a.shape), (a_2.mT @ grad_2).sum_to_size(b_2.shape))
    pairs = zip((found[0], found[1].view(b.shape)), mask, strict=True)
    left, right = (device_copy(value, grad.device) if wanted else None for value, wanted in pairs)
    return left, right


SPECIAL: dict[str, Callable[..., Any]] = {
    "copy_": _copy,
    "_copy_from": lambda source, destination, non_blocking=False: _copy(destination, source),
    "_copy_from_and_resize": _copy_from_and_resize,
    "_to_copy": _to_copy,
    "_local_scalar_dense": _item,
    "mm.dtype": _wide_product(torch.mm),
    "bmm.dtype": _wide_product(torch.bmm),
    "matmul_backward": _matmul_backward,
}
