"""A machine with NVIDIA GPUs that is none: what PyTorch and the driver would answer there."""

from __future__ import annotations

import ctypes

import torch
import torch.distributed as dist

from evocore import backend as backend_module
from evocore.ops import kernel as kernel_module

H100 = "NVIDIA H100 80GB HBM3"
INSTALLED = {"flash-attn": "2.8.3", "flash-attn-3": "3.0.0", "flash-attn-4": "4.0.0b36", "triton": "3.6.0"}


class Machine:
    """What a machine tells PyTorch; its attributes can be changed at any time."""

    def __init__(self, monkeypatch):
        self.driver = 13000  # as the driver counts; None for no driver
        self.names, self.capability, self.bytes = [H100], (9, 0), 80 * 2**30
        self.architectures = ["sm_80", "sm_90", "compute_90"]
        self.nccl = (2, 28, 9)
        self.packages = dict(INSTALLED)
        monkeypatch.setattr(ctypes, "CDLL", self.library)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        for name, answer in {
            "is_available": lambda: bool(self.names),
            "device_count": lambda: len(self.names),
            "get_device_name": lambda device=None: self.names[getattr(device, "index", device) or 0],
            "get_device_capability": lambda device=None: self.capability,
            "get_arch_list": lambda: self.architectures,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.cuda.nccl, "version", lambda: self.nccl)
        monkeypatch.setattr(dist, "is_nccl_available", lambda: self.nccl is not None)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        for module in (backend_module, kernel_module):
            monkeypatch.setattr(module, "version", self.version)

    def library(self, name):
        if self.driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return self

    def cuDriverGetVersion(self, number):  # noqa: N802 - the driver's name
        number._obj.value = self.driver
        return 0

    def version(self, package):
        if package not in self.packages:
            raise kernel_module.PackageNotFoundError(package)
        return self.packages[package]
