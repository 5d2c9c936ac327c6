"""Triton decides when it is imported whether it interprets its kernels, which is how they run on the CPU."""

import os
import sys

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")

if "triton.language" in sys.modules and type(sys.modules["triton.language"].sum).__name__ != "InterpretedFunction":
    raise pytest.UsageError(
        "another test has imported Triton already (PyTorch may, too): TRITON_INTERPRET=1 pytest ..."
    )
