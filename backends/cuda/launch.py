"""Launch parameters of NVIDIA GPUs, chosen with the H100 in mind: 132 SMs of 227 KB shared memory.

Tiles are what fits with the operands of ``stages`` steps of the inner loop in shared memory and the sums in
registers; on a GPU with less shared memory (RTX cards have 99 KB) Triton refuses the largest of them.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from evocore.kernels.launch import AttentionBackwardTiles, AttentionTiles, Launch, Tiles


@lru_cache(maxsize=64)
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _warps(elements: int) -> int:
    """16 elements per thread or so: two vector loads of 16 bytes under way at a time, and room for registers."""
    if elements <= 2048:
        return 4
    if elements <= 8192:
        return 8
    return 16 if elements <= 16384 else 32


def _attention_forward(head_dim: int, itemsize: int) -> AttentionTiles:
    if itemsize >= 4:
        return AttentionTiles(64, 32, 4, 2) if head_dim <= 128 else AttentionTiles(32, 32, 4, 2)
    if head_dim <= 64:
        return AttentionTiles(128, 64, 4, 3, programs=2)
    return AttentionTiles(128, 64, 8, 3) if head_dim <= 128 else AttentionTiles(64, 64, 8, 2)


def _attention_backward(head_dim: int, itemsize: int) -> AttentionBackwardTiles:
    if itemsize >= 4:
        tiles = AttentionTiles(32, 32, 4, 2) if head_dim <= 128 else AttentionTiles(32, 16, 4, 1)
        return AttentionBackwardTiles(tiles, AttentionTiles(tiles.keys, tiles.queries, tiles.warps, tiles.stages))
    if head_dim <= 128:
        return AttentionBackwardTiles(AttentionTiles(128, 64, 8, 2), AttentionTiles(64, 128, 8, 2))
    return AttentionBackwardTiles(AttentionTiles(64, 32, 8, 2), AttentionTiles(32, 64, 8, 2))


def _matmul(itemsize: int) -> Tiles:
    return Tiles(64, 64, 32, 4, 3) if itemsize >= 4 else Tiles(128, 256, 64, 8, 3)


CUDA_LAUNCH = Launch(
    name="cuda",
    units=_multiprocessors,
    programs_per_unit=8,  # the norms ask for fewer, so that a unit's registers hold all of them
    elements=2048,
    warps=_warps,
    attention_forward=_attention_forward,
    attention_backward=_attention_backward,
    matmul=_matmul,
)
"""For every NVIDIA GPU."""
