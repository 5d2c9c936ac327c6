"""Our Triton kernels as kernel records for any device that Triton compiles for.

A backend names its launch parameters and what it measured; the source of a kernel is the same everywhere. On the CPU
they run in Triton's interpreter: to be tested, never to be trained with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from evocore.kernels.launch import Launch
from evocore.kernels.references import FLOATS
from evocore.ops.attention import AttentionRequest
from evocore.ops.cross_entropy import LinearCrossEntropyRequest
from evocore.ops.kernel import Kernel, Request

_FOLDERS = {
    "attention": "attention",
    "attention_block": "attention",
    "rms_norm": "rms_norm",
    "add_rms_norm": "rms_norm",
    "rotary": "rotary",
    "swiglu": "swiglu",
    "geglu": "geglu",
    "cross_entropy": "cross_entropy",
    "cross_entropy_shard": "cross_entropy",
    "linear_cross_entropy": "linear_cross_entropy",
    "grouped_linear": "grouped_linear",
    "moe_permute": "moe_permute",
    "moe_unpermute": "moe_permute",
}
WIDEST_ROW = 32768
"""Elements of a row that a program holds at once in the norms."""
LARGEST_HEAD = 256


def triton_kernels(
    device_type: str,
    launch: Launch,
    *,
    dtypes: frozenset[torch.dtype] = FLOATS,
    requires: tuple[str, ...] = ("triton>=3.5",),
    priorities: Mapping[str, tuple[int, str]] | None = None,
    default_priority: int = 10,
    refuses: Callable[[Request], str | None] = lambda request: None,
) -> list[Kernel]:
    """One kernel per op, provider "triton".

    Args:
        device_type: PyTorch's name of the device.
        launch: its launch parameters.
        dtypes: those that it computes in.
        requires: the package that compiles for it.
        priorities: op -> priority and the measurement that it rests on; ``default_priority`` without.
        refuses: a reason of the device's own why a request cannot be served.
    """

    def supports(request: Request) -> str | None:
        return refuses(request) or _limits(request)

    measured = priorities or {}
    return [
        Kernel(
            op,
            "triton",
            frozenset({device_type}),
            f"evocore.kernels.{folder}.triton_kernel:{op}",
            dtypes,
            requires=requires,
            supports=supports,
            priority=measured.get(op, (default_priority, ""))[0],
            evidence=measured.get(op, (default_priority, ""))[1],
            arguments={"launch": launch},
        )
        for op, folder in _FOLDERS.items()
    ]


def only_interpreted(request: Request) -> str | None:
    """Refuse unless Triton interprets its kernels, which it decides when they are imported."""
    if os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on"):
        return None
    return "runs on this device in Triton's interpreter only (TRITON_INTERPRET=1)"


def _limits(request: Request) -> str | None:
    width: Any = getattr(request, "width", 0)
    if request.op in ("rms_norm", "add_rms_norm") and width > WIDEST_ROW:
        return f"rows of at most {WIDEST_ROW} elements"
    if isinstance(request, AttentionRequest) and request.head_dim > LARGEST_HEAD:
        return f"heads of at most {LARGEST_HEAD}"
    if isinstance(request, LinearCrossEntropyRequest) and request.softcap is not None:
        return "has no softcap"
    return None
