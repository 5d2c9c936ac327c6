"""A shrunk run on each of several processes, or alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from evocore.config import LoadedConfig, load_config
from evocore.config.shrink import shrink
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train


class _Losses(Observer):
    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations = 0

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.steps.append(metrics["loss"])

    def on_validation(self, step: int, losses: dict[str, float]) -> None:
        self.validations += 1


def losses(file: Path, folder: str) -> tuple[list[float], int]:
    """The loss of each step and how often was validated, as rank 0 tells; called on every rank, or alone."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    told = _Losses()
    train(small(file, world, folder), load_plugins(), launch, observers=[told])
    return told.steps, told.validations


def small(file: Path, world: int, folder: str = "runs") -> LoadedConfig:
    """The config, loaded and shrunk; float32 by ``--set``, so that no device chooses another."""
    sets = [f"run_folder={folder}", "enable_tb=False", "model.dtype='torch.float32'"]
    return shrink(load_config(file, sets), world)
