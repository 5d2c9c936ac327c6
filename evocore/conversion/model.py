"""What both conversions need: the model of a config, and a checkpoint of evocore with the model that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evocore.checkpoint.contents import read_contents
from evocore.checkpoint.folder import find_checkpoint
from evocore.checkpoint.foreign.own import EvocoreCheckpoint
from evocore.checkpoint.foreign.source import Source
from evocore.config import Config, config_from_values, load_values
from evocore.errors import UserError
from evocore.nn.family import ModelFamily, Numerics
from evocore.nn.weight_map import WeightMatch
from evocore.plugins.manager import PluginRegistry
from evocore.training.assembly import dtype_named, find_family

_FLOAT32 = Numerics(torch.float32, torch.float32, torch.float32)


@dataclass(frozen=True)
class Converted:
    """What was done.

    Attributes:
        family: of the model.
        parameters: how many it has.
        bytes_read: of weights.
        files: written with weights.
    """

    path: Path
    family: str
    parameters: int
    bytes_read: int
    files: int


@dataclass(frozen=True)
class Opened:
    """A checkpoint of evocore.

    Attributes:
        path: its own folder.
        model: the whole of it on the meta device.
        source: its weights.
    """

    path: Path
    step: int
    config: Config
    family: ModelFamily
    model: nn.Module
    source: EvocoreCheckpoint

    def converted(self, destination: Path, *, files: int) -> Converted:
        """What was made of it."""
        return Converted(destination, self.family.name, parameters_of(self.model), self.source.bytes_read, files)


def open_checkpoint(checkpoint: Path, registry: PluginRegistry) -> Opened:
    """A checkpoint, or the newest of a folder of checkpoints or of a run.

    Raises:
        UserError: there is none, or its config is missing or of a family that is not installed.
    """
    path = find_checkpoint(checkpoint)
    contents = read_contents(path)
    if not isinstance(contents.config, dict):
        raise UserError(
            f"checkpoint {path} holds no config", "the config that it was trained with", "name one that `train` saved"
        )
    config = config_from_values(contents.config, f"config.json in {path}")
    family = find_family(config.model_type, registry)
    return Opened(path, contents.manifest.step, config, family, model_of(family, config), EvocoreCheckpoint(contents))


def config_of(family: ModelFamily, settings: Mapping[str, Any], tokenizer: str | None, name: str) -> Config:
    """A config that says what the model is; how it was trained, nobody knows."""
    length = min(4096, int(settings.get("max_position_embeddings", 2048)))
    data = dict(type="random", seq_len=length, micro_bsz=1, micro_num=1, total_steps=1, tokenizer_path=tokenizer)
    values = dict(
        model_type=family.name,
        model=dict(settings),
        data=data,
        ckpt=dict(enable_save_ckpt=False),
    )
    return load_values(values, name=name).config


def model_of(family: ModelFamily, config: Config) -> nn.Module:
    """The whole model on the meta device."""
    return family.build(config.family_settings(), _FLOAT32)


def parameters_of(model: nn.Module) -> int:
    """How many it has."""
    return sum(parameter.numel() for parameter in model.parameters())


def buffers_of(model: nn.Module) -> frozenset[str]:
    """Names of what no gradient changes."""
    return frozenset(name for name, _ in model.named_buffers())


def dtype_of(name: str | None, config: Config) -> torch.dtype:
    """The dtype that is asked for, else that of training.

    Raises:
        UserError: it is none in which weights are written.
    """
    told = name or str(config.model.dtype)
    dtype = torch.float32 if told == "auto" else dtype_named(told)
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise UserError(f"--dtype {told}", "float32, float16 or bfloat16", "name one of these")
    return dtype


def require_own_fit(match: WeightMatch, source: Source) -> None:
    """Make sure that a checkpoint of ours holds the model that its config describes.

    Raises:
        UserError: somebody has changed one of them.
    """
    wrong = [name for name, shape in match.ours.items() if getattr(source.tensors.get(name), "shape", None) != shape]
    if wrong:
        raise UserError(
            f"{source.name} does not hold the model of its config: {', '.join(wrong[:5])}",
            "the weights of that model",
            "check it with `evocore checkpoint verify`",
        )
