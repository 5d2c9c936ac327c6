"""From a folder of Hugging Face to a checkpoint and back, with tokenizer and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evocore.checkpoint.foreign.destination import copy_files, new_folder, require_free
from evocore.checkpoint.foreign.own import write_checkpoint
from evocore.checkpoint.hugging_face.export import SHARD_BYTES, write_config, write_weights
from evocore.checkpoint.hugging_face.folder import CONFIG, HuggingFaceFolder
from evocore.checkpoint.hugging_face.json_file import read_object
from evocore.checkpoint.hugging_face.load import match_folder, model_shapes
from evocore.checkpoint.hugging_face.tokenizer_files import require_vocabulary, tokenizer_files
from evocore.checkpoint.tensor_files import NAMES
from evocore.config import Config
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
from evocore.nn.family import ModelFamily
from evocore.plugins.manager import PluginRegistry
from evocore.training.assembly import find_family

KEPT_CONFIG, GENERATION = "hugging_face_config.json", "generation_config.json"
"""In a checkpoint, the files of Hugging Face that come back out of it."""
_REPLACED = ("rope_theta", "rope_scaling", "rope_parameters", "torch_dtype", "dtype", "transformers_version")


def hugging_face_to_evocore(
    source: Path, destination: Path, registry: PluginRegistry, *, model_type: str | None = None
) -> Converted:
    """Make a checkpoint of a folder of Hugging Face; tokenizer, ``config.json`` and the like are kept in it.

    Args:
        model_type: the family that reads it, if not the one that ``config.json`` tells.

    Raises:
        UserError: ``destination`` is not free, or the folder or its model cannot be read.
    """
    require_free(destination)
    folder = HuggingFaceFolder(source)
    family = find_family(model_type, registry) if model_type else family_of(folder, registry)
    settings = family.from_hugging_face(folder.config)
    dtype = folder.config.get("dtype") or folder.config.get("torch_dtype") or "float32"
    tokenizer = next((name for name in ("tokenizer.model", "tokenizer.json") if (source / name).is_file()), None)
    config = config_of(
        family,
        dict(settings, dtype=f"torch.{str(dtype).removeprefix('torch.')}"),
        None if tokenizer is None else str(destination.absolute() / tokenizer),
        str(source),
    )
    require_vocabulary(source, config.model.vocab_size)
    model = model_of(family, config)
    match = match_folder(family, model, folder)
    with new_folder(destination) as working:
        files = [*tokenizer_files(source), *(file for file in [source / GENERATION] if file.is_file())]
        records = copy_files(files, working)
        records |= {KEPT_CONFIG: copy_files([source / CONFIG], working, [KEPT_CONFIG])[KEPT_CONFIG]}
        count = write_checkpoint(working, match, folder, config.model_dump(mode="json"), records, buffers_of(model))
    return Converted(destination, family.name, parameters_of(model), folder.bytes_read, count)


def evocore_to_hugging_face(
    checkpoint: Path,
    destination: Path,
    registry: PluginRegistry,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    like: Path | None = None,
) -> Converted:
    """Make a folder of Hugging Face of a checkpoint.

    Args:
        checkpoint: a checkpoint, or a folder of checkpoints or of a run, of which the newest is taken.
        dtype: of the weights; that of training if left out.
        shard_bytes: the most bytes of a file.
        like: a folder of Hugging Face whose tokenizer and settings of generation are copied; by default what is
            beside the checkpoint's weights, and the tokenizer that its config names.

    Raises:
        UserError: ``destination`` is not free, there is no checkpoint, or its model has no form there.
    """
    require_free(destination)
    opened = open_checkpoint(checkpoint, registry)
    settings = opened.config.family_settings()
    written = opened.family.to_hugging_face(settings)
    weights = opened.family.weights(opened.model)
    match = weights.match(model_shapes(opened.model))
    require_own_fit(match, opened.source)
    torch_dtype = dtype_of(dtype, opened.config)
    beside = opened.path if like is None else like
    before = _json(beside / (KEPT_CONFIG if like is None else CONFIG))
    if before.get("model_type") != written["model_type"]:
        before = {key: value for key, value in before.items() if key.endswith("_token_id")}
    kept = {key: value for key, value in before.items() if key not in _REPLACED}
    name = str(torch_dtype).removeprefix("torch.")
    with new_folder(destination) as working:
        copy_files(_tokenizer(beside, opened.config), working)
        require_vocabulary(working, opened.config.model.vocab_size)
        write_config(working, {**kept, **written, "dtype": name, "torch_dtype": name}, _json(beside / GENERATION))
        names = write_weights(
            working, match, opened.source, NAMES[torch_dtype], shard_bytes=shard_bytes, kept=buffers_of(opened.model)
        )
    return opened.converted(destination, files=len(names))


def family_of(folder: HuggingFaceFolder, registry: PluginRegistry) -> ModelFamily:
    """The family that reads a folder, as its ``config.json`` tells.

    Raises:
        UserError: there is none.
    """
    told, families = folder.config["model_type"], registry.models()
    for family in families:
        if told in family.hugging_face:
            return family
    known = sorted({name for family in families for name in family.hugging_face})
    raise UserError(
        f"{folder.path / CONFIG} has model_type = {told!r}, which no model family reads",
        f"one of {', '.join(known)}",
        "install a plug-in that brings the family, or name one that is alike with --model-type",
    )


def _tokenizer(folder: Path, config: Config) -> list[Path]:
    found = tokenizer_files(folder)
    named = Path(config.data.tokenizer_path) if config.data.tokenizer_path else None
    if not found and named is not None and named.is_file() and named.name in ("tokenizer.model", "tokenizer.json"):
        return [named]
    return found


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
