"""The machine that PyTorch believes to be on."""

from __future__ import annotations

import pytest
from cuda_machine import Machine

from evocore.backends.cuda import device as cuda_device
from evocore.ops import kernel as kernel_module


@pytest.fixture
def machine(monkeypatch):
    for variable in (*cuda_device.ALLOCATOR_VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    kernel_module._why_unmet.cache_clear()
    yield Machine(monkeypatch)
    kernel_module._why_unmet.cache_clear()
