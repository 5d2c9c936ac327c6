"""From a checkpoint of InternEvo to one of evocore and back: weights alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evocore.checkpoint.foreign.destination import new_folder, require_free
from evocore.checkpoint.foreign.own import write_checkpoint
from evocore.checkpoint.hugging_face.load import model_shapes
from evocore.checkpoint.internevo.config import saved_settings
from evocore.checkpoint.internevo.export import Division, write_internevo
from evocore.checkpoint.internevo.folder import InternEvoFolder
from evocore.config import load_config
from evocore.config.schema_model import Model
from evocore.conversion.model import (
    Converted,
    buffers_of,
    config_of,
    dtype_of,
    model_of,
    open_checkpoint,
    parameters_of,
    require_own_fit,
)
from evocore.errors import UserError
from evocore.plugins.manager import PluginRegistry
from evocore.training.assembly import find_family


def internevo_to_evocore(
    source: Path,
    destination: Path,
    registry: PluginRegistry,
    *,
    config_file: Path | None = None,
    model_type: str | None = None,
) -> Converted:
    """Make a checkpoint of one of InternEvo's, weights alone.

    Args:
        config_file: the config that it was trained with; it is executed.
        model_type: the family, where there is no such file: ``model_config.pt`` beside the weights tells the rest.

    Raises:
        UserError: ``destination`` is not free, or the checkpoint or its model cannot be read.
    """
    require_free(destination)
    if config_file is not None:
        config = load_config(config_file).config
        family = find_family(config.model_type, registry)
    else:
        settings = saved_settings(source)
        if model_type is None or not settings:
            raise UserError(
                f"nothing tells which model {source} is of",
                "the config that it was trained with, or a model_type and model_config.pt beside the weights",
                "--config FILE, or --model-type NAME",
            )
        family = find_family(model_type, registry)
        config = config_of(family, _known(settings), None, str(source))
    model = model_of(family, config)
    folder = InternEvoFolder(source, family.internevo_weights(model), model_shapes(model), config.model.model_dump())
    with new_folder(destination) as working:
        values = config.model_dump(mode="json")
        count = write_checkpoint(working, folder.match, folder, values, {}, buffers_of(model))
    return Converted(destination, family.name, parameters_of(model), folder.bytes_read, count)


def evocore_to_internevo(
    checkpoint: Path,
    destination: Path,
    registry: PluginRegistry,
    *,
    division: Division | None = None,
    dtype: str | None = None,
) -> Converted:
    """Make a checkpoint of InternEvo, weights alone, of one of evocore.

    Raises:
        UserError: ``destination`` is not free, there is no checkpoint, or its model has no form there.
    """
    require_free(destination)
    opened = open_checkpoint(checkpoint, registry)
    weights = opened.family.internevo_weights(opened.model)
    match = weights.match(model_shapes(opened.model))
    require_own_fit(match, opened.source)
    with new_folder(destination) as working:
        names = write_internevo(
            working,
            weights,
            match,
            opened.source,
            dtype_of(dtype, opened.config),
            division or Division(),
            opened.config.model.model_dump(),
            opened.step,
        )
    return opened.converted(destination, files=len(names))


def _known(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of ``model_config.pt`` that this version has, of plain values."""
    found = {
        key: value
        for key, value in settings.items()
        if key in {*Model.model_fields, "adapt_hf"} and not isinstance(value, torch.dtype)
    }
    if isinstance(settings.get("dtype"), torch.dtype):
        found["dtype"] = str(settings["dtype"])
    return found
