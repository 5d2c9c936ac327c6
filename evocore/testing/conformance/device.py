"""Checks a device's ``Backend`` against what the runtime asks of it, apart from kernels and collectives.

Each check is a function of the backend; its failure is one line that says what the author of the backend must do.
They run in this process, on the device of local rank 0, and put back what they change.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from evocore.backend import Backend
from evocore.testing.conformance.calls import during
from evocore.testing.conformance.check import short
from evocore.testing.conformance.facilities import Finding, UnclaimedError, find, require
from evocore.testing.conformance.memory import check_memory
from evocore.testing.conformance.streams import check_events, check_streams, check_synchronize

COARSEST = 2.0**-10
"""Relative precision that a matrix unit may work in, whatever the dtype: that of TF32."""


def check_devices(backend: Backend) -> None:
    """There is a device, tensors can be made on each of them, and they have names."""
    require(
        backend.why_unavailable() is None, "why_unavailable() gives a reason: return None where the device is there"
    )
    count = backend.device_count()
    require(count >= 1, f"device_count() is {count}, although why_unavailable() is None: make the two agree")
    devices = [backend.device(rank) for rank in range(count)]
    for rank, device in enumerate(devices):
        require(
            device.type == backend.device_type,
            f"device({rank}) is of type {device.type!r}: return one of type {backend.device_type!r}",
        )
        with during(f"set_device({device})"):
            backend.set_device(device)
            made, current = torch.zeros(1, device=device), torch.zeros(1, device=backend.device_type)
        require(
            device.index is None or made.device == current.device == device,
            f"after set_device({device}) a tensor on {backend.device_type!r} lies on {current.device}: make that "
            "device the current one",
        )
        name = backend.device_name(device)
        require(isinstance(name, str) and bool(name), f"device_name({device}) is {name!r}: return the vendor's name")
    backend.set_device(devices[0])
    require(
        len(set(devices)) in (1, count),
        f"device(0) to device({count - 1}) are {len(set(devices))} devices: return one for each local rank, or the "
        "same for all if processes may share it",
    )


def check_records(backend: Backend) -> None:
    """What goes into the doctor's answer and the run's record is text."""
    versions, problems = backend.versions(), backend.health_problems()
    require(
        all(isinstance(word, str) for pair in versions.items() for word in pair),
        f"versions() is {versions!r}: return a dict from names to texts",
    )
    require(
        all(isinstance(line, str) and line and "\n" not in line for line in problems),
        f"health_problems() is {problems!r}: return one line of text, with its cure, for each problem",
    )


def check_random_numbers(backend: Backend) -> None:
    """A saved state brings the same numbers back, on the host and on the device; other seeds give others."""
    device = backend.device()
    of_host, of_all = torch.get_rng_state(), backend.rng_state(device)
    try:
        backend.manual_seed(7)
        first = _drawn(device)
        backend.manual_seed(7)
        _same(first, _drawn(device), "manual_seed(7) twice gives other numbers {where}: seed that generator, too")
        backend.manual_seed(8)
        _differ(
            first, _drawn(device), "manual_seed(7) and (8) give the same numbers {where}: seed that generator, too"
        )

        state = backend.rng_state(device)
        require(
            "host" in state and all(x.dtype == torch.uint8 and x.device.type == "cpu" for x in state.values()),
            "rng_state() must be a dict of uint8 tensors on the host, 'host' among them: checkpoints hold them",
        )
        drawn = _drawn(device)
        _differ(drawn, _drawn(device), "two draws {where} are the same: let the generator advance")
        for _ in range(2):  # the first must not have changed the state that it was given
            backend.set_rng_state(state, device)
            advice = (
                "set_rng_state(rng_state()) does not bring back the numbers {where}: save and restore that generator"
            )
            _same(drawn, _drawn(device), advice)
        backend.set_rng_state(of_all, device)
    finally:
        torch.set_rng_state(of_host)


def _drawn(device: torch.device) -> dict[str, Tensor]:
    return {
        "of the host": torch.rand(16),
        "of the device": torch.rand(16, device=device).cpu(),
        "of dropout on the device": F.dropout(torch.ones(256, device=device), 0.5).cpu(),
    }


def _same(one: dict[str, Tensor], other: dict[str, Tensor], advice: str) -> None:
    for where, x in one.items():
        require(torch.equal(x, other[where]), advice.format(where=where))


def _differ(one: dict[str, Tensor], other: dict[str, Tensor], advice: str) -> None:
    for where, x in one.items():
        require(not torch.equal(x, other[where]), advice.format(where=where))


def check_dtypes(backend: Backend) -> None:
    """In each of the dtypes a matrix product, its gradients and casts can be computed."""
    dtypes, preferred = backend.dtypes(), backend.preferred_dtype()
    require(preferred in dtypes, f"preferred_dtype() is {short(preferred)}: return one of dtypes()")
    for dtype in sorted(dtypes, key=str):
        with during(f"dtypes() has {short(dtype)}: take it out, or make this work"):
            _check_product(backend.device(), dtype)
            _check_casts(backend.device(), dtype)


def _check_product(device: torch.device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, upstream = (torch.randn(size, generator=generator).to(dtype) for size in ((6, 20), (20, 10), (6, 10)))
    on_device = [x.to(device).requires_grad_() for x in (a, b)]
    out = on_device[0] @ on_device[1]
    found = (out, *torch.autograd.grad(out, on_device, upstream.to(device)))
    a, b, upstream = a.double(), b.double(), upstream.double()
    allowed = 4 * max(torch.finfo(dtype).eps, COARSEST)
    for name, x, (left, right) in zip(
        ("the product", "the first gradient", "the second gradient"),
        found,
        ((a, b), (upstream, b.T), (a.T, upstream)),
        strict=True,
    ):
        require(x.dtype == dtype, f"{name} of a matrix product comes out as {short(x.dtype)}")
        error = ((x.detach().cpu().double() - left @ right).abs() / (left.abs() @ right.abs())).max().item()
        require(
            error <= allowed, f"{name} of a matrix product has a relative error of {error:.2g}, not {allowed:.2g}"
        )


def _check_casts(device: torch.device, dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 41)
    found = x.to(device).to(dtype)
    require(torch.equal(found.cpu(), x.to(dtype)), "a cast from float32 rounds otherwise than on the host")
    require(torch.equal(found.float().cpu(), x.to(dtype).float()), "a cast to float32 changes numbers")


def check_autocast(backend: Backend) -> None:
    """Inside ``autocast(dtype)`` a product of float32 matrices comes out in the dtype."""
    x = torch.ones(4, 4, device=backend.device())
    for dtype in sorted(backend.dtypes() & {torch.float32, torch.bfloat16, torch.float16}, key=str):
        with during(f"autocast({short(dtype)})"), backend.autocast(dtype):
            found = (x @ x).dtype
            require(found == dtype, f"a matrix product comes out as {short(found)}: make it lower float32 operands")


def check_peak_flops(backend: Backend) -> None:
    """The peak is a positive number or not known, and says where it comes from."""
    device = backend.device()
    peaks = {short(dtype): backend.peak_flops(dtype, device) for dtype in sorted(backend.dtypes(), key=str)}
    for dtype, peak in peaks.items():
        require(
            peak is None or (isinstance(peak, int | float) and math.isfinite(peak) and peak > 0),
            f"peak_flops({dtype}) is {peak!r}: return operations per second, or None if they are not known",
        )
    source = backend.peak_flops_source()
    require(
        isinstance(source, str) and bool(source),
        f"peak_flops_source() is {source!r}: say where the figures come from",
    )
    if all(peak is None for peak in peaks.values()):
        raise UnclaimedError(f"no peak is known: {source}")


def check_deterministic(backend: Backend) -> None:
    """The switch turns PyTorch's determinism on and off, and products and sums then repeat to the bit."""
    device = backend.device()
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)
    with _own_settings():
        backend.use_deterministic(True)
        require(
            torch.are_deterministic_algorithms_enabled(),
            "use_deterministic(True) leaves PyTorch's switch off: call torch.use_deterministic_algorithms",
        )
        first, second = ((x @ x).sum(0), (x @ x).sum(0))
        require(torch.equal(first, second), "use_deterministic(True) does not make a sum of products repeat itself")
        backend.use_deterministic(False)
        require(
            not torch.are_deterministic_algorithms_enabled(),
            "use_deterministic(False) leaves PyTorch's switch on: hand the argument on",
        )


@contextmanager
def _own_settings() -> Iterator[None]:
    """Put PyTorch's switch and the environment back at the end."""
    before = torch.get_deterministic_debug_mode()
    with patch.dict(os.environ):
        try:
            yield
        finally:
            torch.set_deterministic_debug_mode(before)


def check_pinned_memory(backend: Backend) -> None:
    """If host memory is pinned, it can be, and copies from and to it arrive."""
    if not backend.pins_host_memory():
        raise UnclaimedError("pins_host_memory() is False")
    device, x = backend.device(), torch.arange(4096.0)
    with during("pins_host_memory() is True: return False, or make this work"):
        pinned, back = x.pin_memory(), torch.zeros(4096).pin_memory()
        require(pinned.is_pinned(), "pin_memory() gives memory that is not pinned")
        back.copy_(pinned.to(device, non_blocking=True), non_blocking=True)
        backend.synchronize(device)
        require(torch.equal(back, x), "numbers are changed by a copy there and back")


DEVICE_CHECKS: dict[str, Callable[[Backend], None]] = {
    "devices": check_devices,
    "records": check_records,
    "streams": check_streams,
    "events": check_events,
    "synchronize": check_synchronize,
    "random_numbers": check_random_numbers,
    "memory": check_memory,
    "dtypes": check_dtypes,
    "autocast": check_autocast,
    "peak_flops": check_peak_flops,
    "deterministic": check_deterministic,
    "pinned_memory": check_pinned_memory,
}
"""By the name that ``--check`` takes."""


def check_device(backend: Backend, name: str) -> Finding:
    """Run one of ``DEVICE_CHECKS``."""
    return find(lambda: DEVICE_CHECKS[name](backend), backend=backend.name, part="device", check=name)
