"""NVIDIA GPUs through ``torch.cuda``: what differs from the defaults of ``Backend``.

Whether a GPU can be used is asked of the driver's management library where possible: a process that has touched the
driver itself can no longer fork workers that use it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import lru_cache
from pathlib import Path

import torch

from evocore.backend import Backend, installed_versions
from evocore.backends.cuda.collectives import CUDACollectives
from evocore.backends.cuda.peaks import find_peak
from evocore.ops.collectives import Collectives

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""The second is the former name; PyTorch 2.9 hears nothing of segments under the first."""
EXPANDABLE = "expandable_segments"
PACKAGES = ("triton", "flash-attn", "flash-attn-3", "flash-attn-4", "apex")
"""Optional packages with kernels."""
OLDEST_NCCL = (2, 18)
"""The first that splits a communicator, with which PyTorch makes the groups of a run from the first one."""


class CUDABackend(Backend):
    """NVIDIA GPUs of the Volta generation and later."""

    name = "cuda"
    device_type = "cuda"
    priority = 100
    process_group_backend = "cpu:gloo,cuda:nccl"
    variables = ("CUBLAS_", "CUDA_", "CUDNN_", "NCCL_", "NVIDIA_", "TRITON_")

    # --- availability -----------------------------------------------------------------------------------------------

    def why_unavailable(self) -> str | None:
        if torch.version.cuda is None:
            return f"PyTorch {torch.__version__} was built without CUDA: install a build with it (pytorch.org)"
        driver = _driver_cuda()
        if driver is None:
            return "no NVIDIA driver was found (`nvidia-smi` tells whether there is one)"
        if driver[0] < _built_for()[0]:
            return (
                f"the NVIDIA driver is too old: it knows CUDA {_dotted(driver)}, PyTorch {torch.__version__} was "
                f"built for CUDA {torch.version.cuda}; update the driver or install an older build"
            )
        if torch.cuda.device_count() == 0:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            if visible is not None:
                return f"the NVIDIA driver is there, but CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible"
            return "the NVIDIA driver is there, but it shows no GPU (`nvidia-smi -L` lists them)"
        return None

    def versions(self) -> dict[str, str]:
        driver = _driver_cuda()
        found = {"CUDA": torch.version.cuda or "none"}
        if driver is not None:
            found["CUDA of the driver"] = _dotted(driver)
        if release := _driver_release():
            found["driver"] = release
        if torch.version.cuda is not None:
            found["cuDNN"] = str(torch.backends.cudnn.version())
        if nccl := _nccl():
            found["NCCL"] = _dotted(nccl)
        return found | installed_versions(*PACKAGES)

    def health_problems(self) -> list[str]:
        problems = []
        driver = _driver_cuda()
        if driver is not None and driver < _built_for():
            problems.append(
                f"the driver knows CUDA {_dotted(driver)}, PyTorch was built for {torch.version.cuda}: what Triton "
                "compiles may be refused; update the driver"
            )
        compiled = torch.cuda.get_arch_list()
        for number in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(number)
            name = f"GPU {number} ({torch.cuda.get_device_name(number)}, compute capability {major}.{minor})"
            if compiled and not any(_runs(architecture, (major, minor)) for architecture in compiled):
                problems.append(
                    f"PyTorch has no kernels for {name}, only {', '.join(compiled)}: install a build that has"
                )
            if major < 8:
                problems.append(f'{name} has no bfloat16 units: set dtype="torch.float16", or "torch.float32"')
        nccl = _nccl()
        if nccl is None:
            problems.append("PyTorch has no NCCL: it can train on one GPU only; install an official build")
        elif nccl < OLDEST_NCCL:
            problems.append(f"NCCL {_dotted(nccl)} is older than {_dotted(OLDEST_NCCL)}: install a newer PyTorch")
        chosen = _allocator_choice()
        if EXPANDABLE in chosen and f"{EXPANDABLE}:true" not in chosen.lower():
            problems.append(
                f"{EXPANDABLE} is off ({chosen}): memory fragments when documents differ in length; "
                f"take {EXPANDABLE} out of {' and '.join(ALLOCATOR_VARIABLES)}"
            )
        if not installed_versions("triton"):
            problems.append("Triton is not installed: most fused kernels need it; pip install 'evocore[cuda]'")
        return problems

    # --- device -----------------------------------------------------------------------------------------------------

    def set_device(self, device: torch.device) -> None:
        """Make ``device`` current; before its first allocation let memory segments grow, unless the user chose."""
        _expand_segments()
        super().set_device(device)

    # --- arithmetic -------------------------------------------------------------------------------------------------

    def dtypes(self) -> frozenset[torch.dtype]:
        """bfloat16 only where there are units for it: what PyTorch does elsewhere is many times slower."""
        return super().dtypes() if _lowest_capability() >= (8, 0) else frozenset({torch.float32, torch.float16})

    def preferred_dtype(self) -> torch.dtype:
        """bfloat16, and on GPUs before Ampere float16, whose small range the loss scale makes up for."""
        return torch.bfloat16 if _lowest_capability() >= (8, 0) else torch.float16

    def peak_flops(self, dtype: torch.dtype, device: torch.device) -> float | None:
        """By the datasheet; that of float32 depends on whether PyTorch may round it to TF32."""
        peak = find_peak(self.device_name(device))
        return None if peak is None else peak.of(dtype, torch.backends.cuda.matmul.fp32_precision == "tf32")

    def peak_flops_source(self) -> str:
        name = torch.cuda.get_device_name()
        peak = find_peak(name)
        return f"no figures for {name!r}" if peak is None else peak.source

    def use_deterministic(self, on: bool) -> None:
        """Ask for bit-equal results; before the first matrix product, as cuBLAS reads its variable once."""
        if on:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(on)
        torch.backends.cudnn.deterministic = on
        if on:
            torch.backends.cudnn.benchmark = False

    # --- communication, profiling -----------------------------------------------------------------------------------

    def collectives(self) -> Collectives:
        return CUDACollectives()

    def profiler_activities(self) -> list[torch.profiler.ProfilerActivity]:
        return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]


# --- facts about this machine -------------------------------------------------------------------------------------


def _driver_cuda() -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, None without a driver; asking does not start the driver."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return number.value // 1000, number.value % 1000 // 10


def _driver_release() -> str | None:
    """The driver's own number, from its kernel module."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:  # not Linux, or hidden in a container
        return None
    return next((word for word in text.split() if word.count(".") >= 1 and word.replace(".", "").isdigit()), None)


def _built_for() -> tuple[int, int]:
    major, minor = str(torch.version.cuda).split(".")[:2]
    return int(major), int(minor)


def _nccl() -> tuple[int, ...] | None:
    if not torch.distributed.is_nccl_available():
        return None
    return tuple(part for part in torch.cuda.nccl.version() if isinstance(part, int))


def _runs(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for ``sm_MMm`` (a binary) or ``compute_MMm`` (to be compiled by the driver) runs on a GPU."""
    kind, _, number = architecture.partition("_")
    digits = number.rstrip("af")
    able = int(digits[:-1]), int(digits[-1])
    if digits != number:  # for one GPU, or its family, alone
        return able == capability if number.endswith("a") else able[0] == capability[0] and able <= capability
    return able <= capability and (kind == "compute" or able[0] == capability[0])


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))


def _lowest_capability() -> tuple[int, int]:
    return min(torch.cuda.get_device_capability(number) for number in range(torch.cuda.device_count()))


def _allocator_choice() -> str:
    """What the user set for PyTorch's allocator."""
    return next((os.environ[name] for name in ALLOCATOR_VARIABLES if os.environ.get(name)), "")


@lru_cache(maxsize=1)
def _expand_segments() -> None:
    """Turn expandable segments on, once in a process.

    Through the allocator and not through the environment, which it reads when it is first used or even earlier. A new
    setting replaces all, so the user's others are given again. Memory that CUDA manages has no segments.
    """
    chosen = _allocator_choice()
    if EXPANDABLE in chosen or "cudaMallocAsync" in chosen:
        return
    setting = ",".join(filter(None, (chosen, f"{EXPANDABLE}:True")))
    # A private door, and the only one; the second name is that of PyTorch 2.9.
    apply = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    apply(setting)
