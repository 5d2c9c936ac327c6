"""Reads files of ``torch.save`` that come from strangers: tensors and plain values, and never their code.

A pickle can name any function to be called when it is read. PyTorch's restricted unpickler knows the few that rebuild
tensors and refuses the rest; there is no way around it here.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evocore.checkpoint.foreign.source import TensorFacts
from evocore.checkpoint.tensor_files import NAMES
from evocore.errors import UserError
from evocore.nn.weight_map import matrix


def load_torch_file(path: Path) -> Any:
    """What a file holds, its tensors mapped from the file instead of read.

    Raises:
        UserError: it is not there, is not such a file, or holds more than tensors and plain values.
    """
    try:
        if not _is_archive(path):  # written before PyTorch 1.6: has no parts that could be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}", "a file of torch.save", "copy it there") from error
    except pickle.UnpicklingError as error:
        lines = [line.strip() for line in str(error).rpartition("WeightsUnpickler error:")[2].splitlines()]
        found = next((line for line in lines if line), "")
        raise UserError(
            f"{path} is not read, because it holds more than tensors and plain values, and reading that could run "
            f"somebody's code ({found[:200]})",
            "tensors and plain values",
            "get the model as safetensors, or write it again from a program that you trust",
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read as a file of torch.save: {str(error).splitlines()[0][:200]}",
            "a whole file of torch.save",
            "download or write it again",
        ) from error


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


class TorchFile:
    """The tensors of one file by name, a ``Source`` without a name of its own.

    Raises:
        UserError: as ``load_torch_file``, or it holds no mapping of names to tensors.
    """

    def __init__(self, path: Path) -> None:
        found = load_torch_file(path)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise UserError(
                f"{path} holds a {type(found).__name__}", "a state dict: names and tensors", "name another file"
            )
        if others := [name for name, value in found.items() if not isinstance(value, Tensor)]:
            raise UserError(
                f"{path} holds {others[0]!r}, a {type(found[others[0]]).__name__}",
                "a state dict: names and tensors",
                "name another file",
            )
        self.values: dict[str, Tensor] = {name: value.detach() for name, value in found.items()}
        self.tensors = {name: facts_of(value) for name, value in self.values.items()}
        self.bytes_read = 0

    def read(self, name: str, rows: range, columns: range) -> Tensor:
        """As in ``Source``."""
        found = rectangle(self.values[name], rows, columns)
        self.bytes_read += found.numel() * found.element_size()
        return found


def facts_of(tensor: Tensor) -> TensorFacts:
    """Dtypes that safetensors do not have are told by PyTorch's name: nothing can be done with them."""
    return TensorFacts(NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))


def rectangle(tensor: Tensor, rows: range, columns: range) -> Tensor:
    """Of a tensor of at most two dimensions, seen as a matrix, the view of a rectangle."""
    seen = tensor if tensor.dim() == 2 else matrix(tensor.contiguous())
    return seen[rows.start : rows.stop : rows.step, columns.start : columns.stop]
