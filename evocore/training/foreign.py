"""Starts a run from weights of another house, under whatever layout: each rank reads what it holds of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evocore.checkpoint.boxes import Boxes
from evocore.checkpoint.folder import local_folder
from evocore.checkpoint.foreign.fill import fill
from evocore.checkpoint.foreign.source import Source
from evocore.checkpoint.hugging_face.folder import HuggingFaceFolder
from evocore.checkpoint.hugging_face.load import match_folder, model_shapes
from evocore.checkpoint.hugging_face.tokenizer_files import require_vocabulary
from evocore.checkpoint.internevo.folder import InternEvoFolder
from evocore.config.schema_run import HUGGING_FACE
from evocore.errors import UserError
from evocore.nn.weight_map import WeightMatch
from evocore.training.assembly import Plan
from evocore.training.optimizer import Optimizer

if TYPE_CHECKING:
    from evocore.config import Config


def load_foreign(config: Config, plan: Plan, optimizer: Optimizer, collect: Callable[[str], list[str]]) -> str:
    """Fill the master weights from ``load_ckpt_info``, a folder of Hugging Face or of InternEvo.

    Collective: every rank reads, and all raise the error of the first that failed.

    Args:
        collect: the texts of all ranks.

    Returns:
        What to say of it.

    Raises:
        UserError: there is no such checkpoint, it is of another model, or it does not fit the dtype.
    """
    problem = ""
    try:
        source, match = open_foreign(config, plan)
        targets = model_targets(optimizer.tensors())
        fill(match, source, targets)
        if plan.numerics.dtype == torch.float16:
            _require_range(targets, source.name)
    except UserError as error:
        problem = json.dumps(error.args)
    if told := [text for text in collect(problem) if text]:
        raise UserError(*json.loads(told[0]))
    return f"weights from {source.name}, of which this rank has read {source.bytes_read / 1e6:,.1f} MB"


def open_foreign(config: Config, plan: Plan) -> tuple[Source, WeightMatch]:
    """The checkpoint that ``load_ckpt_info`` names, and what of it is what of the model, which it fits."""
    info = config.ckpt.load_ckpt_info
    assert info is not None
    path, settings = local_folder(info.path), config.family_settings()
    whole = plan.family.build(settings, plan.numerics)
    if info.ckpt_type in HUGGING_FACE:
        folder = HuggingFaceFolder(path)
        require_vocabulary(path, config.model.vocab_size)
        return folder, match_folder(plan.family, whole, folder)
    internevo = InternEvoFolder(path, plan.family.internevo_weights(whole), model_shapes(whole), settings)
    return internevo, internevo.match


def model_targets(tensors: Mapping[str, Tensor | Boxes]) -> dict[str, Tensor | Boxes]:
    """Of what the optimizer saves: the memory of weights and buffers, by the model's names."""
    kinds = ("master.", "buffer.")
    return {name.partition(".")[2]: tensor for name, tensor in tensors.items() if name.startswith(kinds)}


def _require_range(targets: Mapping[str, Tensor | Boxes], source: str) -> None:
    most = torch.finfo(torch.float16).max
    for name, target in targets.items():
        for part in target.parts.values() if isinstance(target, Boxes) else [target]:
            if part.numel() and float(part.abs().max()) > most:
                largest = float(part.abs().max())
                raise UserError(
                    f"{source} has values of {name} up to {largest:.3g}, beyond model.dtype = float16",
                    f"values up to {most:.0f}",
                    "set model.dtype='torch.bfloat16' or 'torch.float32'",
                )
