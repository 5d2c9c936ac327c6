"""Checks that a device's memory figures mean what the launch report, the planner and the alerts take them for."""

from __future__ import annotations

import importlib
import sys

import torch
from torch import Tensor

from evocore.backend import Backend
from evocore.testing.conformance.check import HOST
from evocore.testing.conformance.facilities import NotHereError, UnclaimedError, require

BLOCK = 64 * 2**20
"""Bytes of an allocation, large beside whatever else happens."""
MOST = 32
"""Blocks until the host's process must have grown beyond what it ever was, or nothing can be said."""


def check_memory(backend: Backend) -> None:
    """``allocated`` grows by an allocation, ``peak`` holds the most of it and starts again when it is reset."""
    device = backend.device()
    start = _figures(backend, device)
    if device.type == HOST:
        _check_host(backend, device)
        return
    block = _block(device)
    held = _figures(backend, device)
    if not held["allocated"]:
        raise UnclaimedError("memory() tells no figures")
    grown = held["allocated"] - start["allocated"]
    require(
        grown >= BLOCK, f"allocated grew by {grown} bytes when {BLOCK} were: count what tensors of this process take"
    )
    require(
        held["peak"] >= start["allocated"] + BLOCK,
        f"peak is {held['peak']} with {held['allocated']} bytes allocated: keep the largest value of allocated",
    )
    backend.empty_cache()
    require(bool((block == 1).all()), "empty_cache() changed a tensor: give back only what nobody holds")
    del block
    backend.synchronize(device)
    freed = _figures(backend, device)
    require(
        freed["allocated"] <= held["allocated"] - BLOCK,
        f"allocated is {freed['allocated']} after a tensor of {BLOCK} bytes was freed: count what is held",
    )
    require(freed["peak"] >= held["peak"], "peak fell when a tensor was freed: keep it until it is reset")
    backend.reset_peak_memory(device)
    after = _figures(backend, device)
    require(
        after["peak"] < held["peak"],
        f"peak is still {after['peak']} after reset_peak_memory(): let it start again from what is allocated",
    )


def _check_host(backend: Backend, device: torch.device) -> None:
    """A host's figures are those of the whole process, or the most that they ever were: they need not fall."""
    start, own = _figures(backend, device), _largest_resident()
    if not start["allocated"]:
        raise UnclaimedError("memory() tells no figures")
    blocks: list[Tensor] = []
    while _figures(backend, device)["allocated"] < start["allocated"] + BLOCK // 2:
        require(
            _largest_resident() < own + 2 * BLOCK,
            f"allocated is still {start['allocated']} with {len(blocks) * BLOCK} bytes more in use: measure it anew "
            "at each call",
        )
        if len(blocks) == MOST:
            raise NotHereError(f"this process has been larger than it is with {MOST * BLOCK} bytes more")
        blocks.append(_block(device))
    backend.empty_cache()
    backend.reset_peak_memory(device)
    _figures(backend, device)


def _figures(backend: Backend, device: torch.device) -> dict[str, int]:
    figures = backend.memory(device)
    require(
        {"allocated", "peak", "total"} <= set(figures)
        and all(isinstance(x, int) and x >= 0 for x in figures.values()),
        f"memory() is {figures}: return bytes as allocated, peak and total, 0 where they are not known",
    )
    require(
        figures["peak"] >= figures["allocated"],
        f"peak is {figures['peak']}, less than the {figures['allocated']} bytes allocated: keep the largest value",
    )
    require(
        not figures["total"] or figures["total"] >= figures["allocated"],
        f"total is {figures['total']}, less than the {figures['allocated']} bytes allocated: tell the device's size",
    )
    return figures


def _block(device: torch.device) -> Tensor:
    """Written to, as a host gives memory only then."""
    return torch.ones(BLOCK // 4, device=device)


def _largest_resident() -> int:
    """Bytes, as the operating system counts them for this process."""
    try:
        resource = importlib.import_module("resource")
    except ImportError:  # Windows
        raise NotHereError("the operating system does not tell how large a process has been") from None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)
