"""A plug-in whose swiglu fails on rank 1, in the third step, as the environment says: ``FAILURE=raise``."""

import os
import time
from pathlib import Path

import torch
from failing_ranks import fail

from evocore import hookimpl
from evocore.ops.kernel import Kernel

CALLS_BEFORE = 8  # two steps of two micro-batches through two layers

calls = 0


def swiglu(gate_TF, up_TF):
    global calls
    calls += 1
    if calls > CALLS_BEFORE and os.environ["RANK"] == "1":
        Path("moment").write_text(str(time.monotonic()))
        fail(os.environ["FAILURE"])
    return torch.nn.functional.silu(gate_TF) * up_TF


@hookimpl
def evocore_kernels():
    cpu, dtypes = frozenset({"cpu"}), frozenset({torch.float32})
    return [Kernel("swiglu", "failing", cpu, "failing_plugin:swiglu", dtypes, priority=999)]
