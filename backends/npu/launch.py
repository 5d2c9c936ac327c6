"""Launch parameters of Triton kernels on an Ascend core, as triton-ascend compiles them.

A program runs on one vector core (or, with a matrix product in it, on one cube core) and has 192 KB of fast memory,
of which double buffering leaves half; there are no warps, and a grid larger than the cores is only queued. Tiles are
therefore small and the grid is the number of cores.
"""

from __future__ import annotations

import torch

from evocore.kernels.launch import AttentionBackwardTiles, AttentionTiles, Launch, Tiles

CORES = 40
"""Vector cores of a 910B2 or 910B3; where the driver tells another number, that counts."""


def _cores(device: torch.device) -> int:
    properties = torch.get_device_module(device).get_device_properties(device)
    return int(getattr(properties, "vector_core_num", CORES))


ASCEND = Launch(
    name="ascend",
    units=_cores,
    programs_per_unit=1,
    elements=4096,
    warps=lambda elements: 1,
    attention_forward=lambda head_dim, itemsize: AttentionTiles(64, 64, 1, 1),
    attention_backward=lambda head_dim, itemsize: AttentionBackwardTiles(
        for_queries=AttentionTiles(32, 64, 1, 1), for_keys=AttentionTiles(64, 32, 1, 1)
    ),
    matmul=lambda itemsize: Tiles(64, 64, 64, 1, 1),
)
