"""Hugging Face's weights into a whole model in memory, and how they are matched with one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from evocore.checkpoint.foreign.fill import fill
from evocore.checkpoint.foreign.fit import require_fit
from evocore.checkpoint.hugging_face.folder import HuggingFaceFolder
from evocore.nn.family import ModelFamily
from evocore.nn.weight_map import Shape, WeightMatch


def model_shapes(model: nn.Module) -> dict[str, Shape]:
    """Shapes of a whole model's parameters and buffers, by name: what weight maps are matched with."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def match_folder(family: ModelFamily, model: nn.Module, folder: HuggingFaceFolder) -> WeightMatch:
    """What of a folder is what of a whole model, on any device.

    Raises:
        UserError: the folder holds another model.
    """
    match = family.weights(model).match(model_shapes(model))
    if folder.config.get("tie_word_embeddings") is False:
        match = replace(match, stand_ins={})  # a head that is not there was lost
    require_fit(match, folder)
    return match


def load_hugging_face(path: str | Path, family: ModelFamily, model: nn.Module) -> None:
    """Fill a whole model, on its device, from a folder of Hugging Face.

    Raises:
        UserError: there is no such folder, or it holds another model.
    """
    folder = HuggingFaceFolder(path)
    match = match_folder(family, model, folder)
    fill(match, folder, dict([*model.named_parameters(), *model.named_buffers()]))
