"""The CPU as a device: always available, its peak measured once because no table knows it."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from evocore.backend import Backend
from evocore.backends.cpu.collectives import CPUCollectives
from evocore.ops.collectives import Collectives

PROBE_SIZE = 1536
"""Side of the square matrices whose product measures the peak: large enough to leave the caches."""
PROBE_SECONDS = 0.3
"""How long the product is tried again; every process that starts pays this."""


class CPUBackend(Backend):
    """Any processor that PyTorch runs on."""

    name = "cpu"
    device_type = "cpu"
    priority = -100  # every accelerator is preferred
    variables = ("ATEN_CPU_CAPABILITY", "DNNL_", "GOMP_", "KMP_", "ONEDNN_", "TRITON_INTERPRET")

    def why_unavailable(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {"cpu capability": torch.backends.cpu.get_cpu_capability(), "threads": str(torch.get_num_threads())}

    def device(self, local_rank: int = 0) -> torch.device:
        return torch.device("cpu")

    def set_device(self, device: torch.device) -> None:
        return None

    def device_name(self, device: torch.device) -> str:
        return platform.processor() or platform.machine()

    def synchronize(self, device: torch.device) -> None:
        return None

    def stream(self, device: torch.device) -> Any:
        return torch.cpu.Stream()

    def on_stream(self, stream: Any) -> AbstractContextManager[Any]:
        return nullcontext()

    def rng_state(self, device: torch.device) -> dict[str, torch.Tensor]:
        return {"host": torch.get_rng_state()}

    def memory(self, device: torch.device) -> dict[str, int]:
        """``allocated`` and ``peak`` are the largest resident set so far; no other figure is to be had cheaply."""
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return {"allocated": peak, "peak": peak, "total": _physical_memory()}

    def reset_peak_memory(self, device: torch.device) -> None:
        return None

    def empty_cache(self) -> None:
        return None

    def preferred_dtype(self) -> torch.dtype:
        return torch.bfloat16 if _has_fast_bfloat16() else torch.float32

    def peak_flops(self, dtype: torch.dtype, device: torch.device) -> float | None:
        """The rate of a large matrix product, measured on first use with the threads that this process has."""
        if dtype != torch.float32 and not _has_fast_bfloat16():
            return None  # emulated products take minutes to measure and mean nothing
        return _measured_gemm(dtype, torch.get_num_threads())

    def peak_flops_source(self) -> str:
        return f"measured: product of two {PROBE_SIZE} x {PROBE_SIZE} matrices"

    def collectives(self) -> Collectives:
        return CPUCollectives()

    def pins_host_memory(self) -> bool:
        return False


@lru_cache(maxsize=1)
def _has_fast_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; asked, not timed: a timing could differ by rank."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux: such a processor is not known to be fast
        return False
    return any(feature in flags for feature in ("avx512_bf16", "amx_bf16", "bf16 ", "svebf16"))


@lru_cache(maxsize=4)
def _measured_gemm(dtype: torch.dtype, threads: int) -> float:
    a = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    b = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    rates: list[float] = []
    end = time.perf_counter() + PROBE_SECONDS
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        rates.append(2 * PROBE_SIZE**3 / (time.perf_counter() - start))
    return max(rates)  # a peak: slower tries were disturbed


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
