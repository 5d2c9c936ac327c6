"""What happened on the device, so that a test can ask: operators, fused calls, and where the host waited."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[3]
ROOMS = tuple(f"{ROOT / room}/" for room in ("evocore", "kernels", "backends", "models"))


@dataclass(frozen=True)
class Described:
    """A tensor among the arguments of a call."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str


@dataclass(frozen=True)
class FusedCall:
    """A call of one of torch_npu's own operators, with every argument by its name in the schema."""

    name: str
    arguments: Mapping[str, Any]


@dataclass
class Ledger:
    """Of this process.

    Attributes:
        operators: how often each operator of PyTorch ran on the device.
        fused: calls of torch_npu's operators, in order.
        waits: where the host waited for a value of the device: the innermost line of evocore that led there, as
            ``"file:function"`` relative to the root, with the operator behind it.
    """

    operators: Counter[str] = field(default_factory=Counter)
    fused: list[FusedCall] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)

    def clear(self) -> None:
        self.operators.clear()
        self.fused.clear()
        self.waits.clear()

    def record_fused(self, name: str, arguments: Mapping[str, Any]) -> None:
        self.fused.append(FusedCall(name, {key: _described(value) for key, value in arguments.items()}))

    def record_wait(self, operator: str) -> None:
        self.waits.append(f"{_origin(sys._getframe(1))} {operator}")


LEDGER = Ledger()


def _described(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Described(tuple(value.shape), value.dtype, value.device.type)
    if isinstance(value, list | tuple):
        return [_described(entry) for entry in value]
    return value


def _origin(frame: FrameType | None) -> str:
    while frame is not None:
        if frame.f_code.co_filename.startswith(ROOMS):
            return f"{Path(frame.f_code.co_filename).relative_to(ROOT)}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
