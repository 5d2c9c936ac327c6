"""What a device wants of a launch: the same Triton source runs on an SM, on an Ascend core and in the interpreter.

Kernels are persistent: they start as many programs as fill the device and let each walk over its share, so that the
grid never depends on how a device schedules thousands of small programs. Nothing here imports Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Tiles:
    """How a matrix-like kernel cuts its work: ``rows x columns`` of the result, ``inner`` of the sum at a time."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


@dataclass(frozen=True)
class AttentionTiles:
    """Tiles of one attention kernel: ``queries x keys`` scores at a time; a unit holds so many ``programs`` of it."""

    queries: int
    keys: int
    warps: int
    stages: int
    programs: int = 1


@dataclass(frozen=True)
class AttentionBackwardTiles:
    """Tiles of the two kernels of the backward of attention.

    Attributes:
        for_queries: of the one that owns some queries, whose gradient it sums over blocks of keys.
        for_keys: of the one that owns some keys and values, whose gradients it sums over blocks of queries.
    """

    for_queries: AttentionTiles
    for_keys: AttentionTiles


@dataclass(frozen=True)
class Launch:
    """Launch parameters of one kind of device.

    Attributes:
        name: of the set, shown in tables.
        units: device -> how many independent processors it has (SMs, vector cores).
        programs_per_unit: programs of a row or elementwise kernel that a unit holds at once.
        elements: of the tile of an elementwise kernel, a power of two.
        warps: elements of a tile -> warps of its program.
        attention_forward, attention_backward: (head size, bytes per element) -> tiles, powers of two from 16.
        matmul: (bytes per element) -> tiles of a matrix product.
    """

    name: str
    units: Callable[[torch.device], int]
    programs_per_unit: int
    elements: int
    warps: Callable[[int], int]
    attention_forward: Callable[[int, int], AttentionTiles]
    attention_backward: Callable[[int, int], AttentionBackwardTiles]
    matmul: Callable[[int], Tiles]

    def programs(self, device: torch.device, tasks: int) -> int:
        """Programs to start for so many independent tasks: one each until the device is full; 1 at least."""
        return max(1, min(tasks, self.units(device) * self.programs_per_unit))

    def attention_programs(self, device: torch.device, tasks: int, tiles: AttentionTiles) -> int:
        """As ``programs``, for a kernel of attention."""
        return max(1, min(tasks, self.units(device) * tiles.programs))


INTERPRETER = Launch(
    name="interpreter",
    units=lambda device: 2,
    programs_per_unit=1,
    elements=1024,
    warps=lambda elements: 1,
    attention_forward=lambda head_dim, itemsize: AttentionTiles(16, 16, 1, 1),
    attention_backward=lambda head_dim, itemsize: AttentionBackwardTiles(
        AttentionTiles(16, 16, 1, 1), AttentionTiles(16, 16, 1, 1)
    ),
    matmul=lambda itemsize: Tiles(16, 16, 16, 1, 1),
)
"""For Triton's interpreter on the CPU: few programs, each of which costs milliseconds, yet more than one of each."""
