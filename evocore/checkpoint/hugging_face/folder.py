"""A folder in the format of Hugging Face: its ``config.json``, and its weights in one safetensors file or several.

Several have an index, ``model.safetensors.index.json``, that says which tensor is in which. Where there are none, the
files that PyTorch once wrote in their place are read, without running what a pickle may hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from evocore.checkpoint.foreign.safetensors_file import SafetensorsFile
from evocore.checkpoint.foreign.source import TensorFacts
from evocore.checkpoint.foreign.torch_file import TorchFile
from evocore.checkpoint.hugging_face.json_file import read_object
from evocore.errors import UserError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
OLD_WEIGHTS, OLD_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

WeightFile = SafetensorsFile | TorchFile


class HuggingFaceFolder:
    """An open folder, a ``Source``.

    Attributes:
        path: of the folder.
        config: its ``config.json``.

    Raises:
        UserError: there is no such folder, or a file of it is missing or is not what its name says.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = f"the Hugging Face checkpoint {self.path}"
        self.config = read_config(self.path)
        self._files = _open_weights(self.path)
        self._of = {name: file for file in self._files for name in file.tensors}
        self.tensors: Mapping[str, TensorFacts] = {name: file.tensors[name] for name, file in self._of.items()}

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self._files)

    def read(self, name: str, rows: range, columns: range) -> Tensor:
        """As in ``Source``."""
        return self._of[name].read(name, rows, columns)


def read_config(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder.

    Raises:
        UserError: it is not there, or not JSON with ``model_type``.
    """
    if not (path / CONFIG).is_file():
        raise UserError(
            f"there is no {CONFIG} in {path}",
            "a folder as `save_pretrained` of transformers writes it",
            "give the folder of a downloaded model",
        )
    found = read_object(path / CONFIG)
    if not isinstance(found.get("model_type"), str):
        raise UserError(
            f"{path / CONFIG} has no model_type", "the config.json of a language model", "download the model again"
        )
    return found


def _open_weights(path: Path) -> list[WeightFile]:
    for index, weights in ((INDEX, WEIGHTS), (OLD_INDEX, OLD_WEIGHTS)):
        if (path / index).is_file():
            return _open_indexed(path / index)
        if (path / weights).is_file():
            return [_open(path / weights)]
    raise UserError(
        f"there are no weights in {path}", f"{WEIGHTS}, or {INDEX} and the files that it names", "download them"
    )


def _open_indexed(index: Path) -> list[WeightFile]:
    where = read_object(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise UserError(
            f"{index} has no weight_map", "the names of tensors and the files that hold them", "download it again"
        )
    files: dict[str, WeightFile] = {}
    for tensor, name in where.items():
        if name not in files:
            if Path(name).name != name or not (index.parent / name).is_file():
                raise UserError(
                    f"{index} says that {tensor} is in {name!r}, which is not there",
                    f"every file that it names, beside it: {len(set(where.values()))} in all",
                    "download the missing file",
                )
            files[name] = _open(index.parent / name)
        if tensor not in files[name].tensors:
            raise UserError(
                f"{index} says that {tensor} is in {name}, which does not hold it",
                "an index that fits its files",
                "download both again",
            )
    return list(files.values())


def _open(path: Path) -> WeightFile:
    return SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path)
