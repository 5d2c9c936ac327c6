"""``torch.npu``: the part of torch_npu's runtime API that evocore drives a device through.

This module is registered as ``torch.npu`` itself; names and defaults are torch_npu's. Work is done where it is
queued, so streams and events are complete at once. There is one device unless more are asked for: PyTorch's autograd
works on the first alone where a device is written in Python. Tensors and collectives work on all.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from python_npu.memory_blocks import FIGURES

DEVICES = "PYTHON_NPU_DEVICES"
"""Environment variable with the number of devices, 1 if it is not set."""
TOTAL_MEMORY = 64 * 2**30
NAME = "Ascend910B2"

_Device = torch.device | str | int | None


# --- devices --------------------------------------------------------------------------------------------------------


def device_count() -> int:
    return int(os.environ.get(DEVICES, "1"))


def is_available() -> bool:
    return device_count() > 0


def is_initialized() -> bool:
    return True


def _lazy_init() -> None:
    pass


def _is_in_bad_fork() -> bool:
    return False


_current = [0]


def current_device() -> int:
    return _current[0]


def set_device(device: _Device) -> None:
    _current[0] = _index(device)


def get_device_name(device: _Device = None) -> str:
    _index(device)
    return NAME


def get_device_properties(device: _Device = None) -> SimpleNamespace:
    _index(device)
    return SimpleNamespace(name=NAME, total_memory=TOTAL_MEMORY, cube_core_num=24, vector_core_num=48)


def get_device_capability(device: _Device = None) -> None:
    """torch_npu has no answer either: whoever unpacks it fails."""
    return None


def is_bf16_supported() -> bool:
    return True


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16, torch.float32]


def _index(device: _Device) -> int:
    if isinstance(device, str):
        device = torch.device(device)
    index = device.index if isinstance(device, torch.device) else device
    if index is None:
        return current_device()
    if not 0 <= index < device_count():
        raise RuntimeError(f"invalid device {device}: there are {device_count()}")
    return index


class _Options:
    """Settings that torch_npu takes and does not give back."""

    def __init__(self) -> None:
        object.__setattr__(self, "given", {})

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "allow_internal_format":
            raise AttributeError(f"torch.npu.config has no {name}")
        self.given[name] = value

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"torch.npu.config.{name} can only be written")


config = _Options()


def set_compile_mode(jit_compile: bool = False) -> None:
    config.given["jit_compile"] = jit_compile


# --- streams --------------------------------------------------------------------------------------------------------


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._timing, self._at = enable_timing, 0.0

    def record(self, stream: Stream | None = None) -> None:
        self._at = time.perf_counter()

    def wait(self, stream: Stream | None = None) -> None:
        pass

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds."""
        if not self._timing:
            raise RuntimeError("the event was made without enable_timing")
        return (end_event._at - self._at) * 1e3


class Stream:
    def __init__(self, device: _Device = None, priority: int = 0) -> None:
        self.device, self.priority = torch.device("npu", _index(device)), priority

    def wait_stream(self, stream: Stream) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


_streams: list[Stream] = []  # the default one, then those that were made current


def default_stream(device: _Device = None) -> Stream:
    if not _streams:
        _streams.append(Stream(device))
    return _streams[0]


def current_stream(device: _Device = None) -> Stream:
    return _streams[-1] if _streams else default_stream(device)


@contextmanager
def stream(stream: Stream) -> Iterator[None]:
    default_stream()
    _streams.append(stream)
    try:
        yield
    finally:
        _streams.pop()


def synchronize(device: _Device = None) -> None:
    _index(device)


# --- memory ---------------------------------------------------------------------------------------------------------


def memory_allocated(device: _Device = None) -> int:
    return FIGURES.allocated


def max_memory_allocated(device: _Device = None) -> int:
    return FIGURES.peak


def reset_peak_memory_stats(device: _Device = None) -> None:
    FIGURES.peak = FIGURES.allocated


def mem_get_info(device: _Device = None) -> tuple[int, int]:
    return TOTAL_MEMORY - FIGURES.allocated, TOTAL_MEMORY


def empty_cache() -> None:
    pass


# --- random numbers -------------------------------------------------------------------------------------------------


class _Generator:
    """Counter-based, as the device's is: the state is a seed and how far it was drawn from."""

    def __init__(self) -> None:
        self._state = struct.pack("<QQ", 0, 0)

    def manual_seed(self, seed: int) -> None:
        self._state = struct.pack("<QQ", seed % 2**64, 0)

    def get_state(self) -> torch.Tensor:
        return torch.frombuffer(bytearray(self._state), dtype=torch.uint8)

    def set_state(self, state: torch.Tensor) -> None:
        if state.device.type != "cpu" or state.dtype != torch.uint8 or state.numel() != 16:
            raise RuntimeError("RNG state must be 16 bytes on the host")
        self._state = bytes(state.tolist())


default_generators = tuple(_Generator() for _ in range(device_count()))


def manual_seed(seed: int) -> None:
    default_generators[current_device()].manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    for generator in default_generators:
        generator.manual_seed(seed)


def get_rng_state(device: _Device = None) -> torch.Tensor:
    return default_generators[_index(device)].get_state()


def set_rng_state(new_state: torch.Tensor, device: _Device = None) -> None:
    default_generators[_index(device)].set_state(new_state)
