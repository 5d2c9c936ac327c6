"""Reads rectangles of tensors out of a safetensors file, exactly their bytes, into memory of the reader's own.

The library maps the file, so that every page that was read stays resident; a converter with little memory and a rank
that counts its bytes read by position. The library checks the header first: this reader trusts what passed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evocore.checkpoint.contents import DTYPE_BYTES
from evocore.checkpoint.foreign.source import TensorFacts
from evocore.checkpoint.tensor_files import DTYPES
from evocore.errors import UserError
from evocore.nn.weight_map import Shape


class SafetensorsFile:
    """One file, open for reading until the object goes; several threads may read it.

    Attributes:
        tensors: what it holds, by name.
        bytes_read: of values, so far.

    Raises:
        UserError: it is not there or is not a safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self._path, self.bytes_read, self._lock = path, 0, Lock()
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path} cannot be read as a safetensors file: {error}",
                "a whole file in the safetensors format",
                "download or write it again",
            ) from error
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed with this object
        length = int.from_bytes(self._file.read(8), "little")
        header = json.loads(self._file.read(length))
        header.pop("__metadata__", None)
        self._starts = {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}
        self.tensors = {name: TensorFacts(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}

    def read(self, name: str, rows: range, columns: range) -> Tensor:
        """As in ``Source``."""
        facts = self.tensors[name]
        size, width = DTYPE_BYTES[facts.dtype], matrix_columns(facts.shape)
        found = torch.empty(len(rows) * len(columns), dtype=DTYPES[facts.dtype])
        memory = found.view(torch.uint8).numpy().data
        start, done = self._starts[name], 0
        for run in _runs(rows, columns, width):
            self._read_at(memory[done : done + len(run) * size], start + run.start * size)
            done += len(run) * size
        with self._lock:
            self.bytes_read += done
        return found.view(len(rows), len(columns))

    def _read_at(self, memory: memoryview, offset: int) -> None:
        while memory:
            count = os.preadv(self._file.fileno(), [memory], offset)
            if not count:
                raise OSError(f"{self._path} ended while it was read")
            memory, offset = memory[count:], offset + count


def matrix_columns(shape: Shape) -> int:
    """Columns of a tensor seen as a matrix."""
    return shape[-1] if len(shape) > 1 else 1


def _runs(rows: range, columns: range, width: int) -> Iterator[range]:
    """Elements of the file that lie one after another."""
    if rows.step == 1 and len(columns) == width:
        yield range(rows.start * width, rows.stop * width)
        return
    for row in rows:
        yield range(row * width + columns.start, row * width + columns.stop)
