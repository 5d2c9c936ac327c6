"""Safetensors files: written one tensor at a time from any device, read through a memory map.

The library's own ``save_file`` wants every tensor contiguous, on the CPU, unaliased and at once; here the header is
known from the plan, so a shard of any size costs one tensor of host memory. The format is an 8-byte little-endian
header length, a JSON header and the bytes, https://github.com/huggingface/safetensors#format. Reading is left to the
library, which checks a header before it trusts it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from evocore.checkpoint.contents import DTYPE_BYTES, Chunk, TensorInfo
from evocore.checkpoint.errors import damaged
from evocore.checkpoint.files import FileRecord, write_file
from evocore.errors import UserError

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64, "U64": torch.uint64,
    "F64": torch.float64,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
"""Both ways between PyTorch's dtypes and the safetensors format's names."""
_RESERVED = "__metadata__"


@dataclass(frozen=True)
class Stored:
    """One tensor in a file: its key there, dtype by the safetensors name, and shape."""

    key: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Entry(Stored):
    """One tensor to be written, and how to get it."""

    fetch: Callable[[], torch.Tensor]


def dtype_name(name: str, dtype: torch.dtype, layout: torch.layout) -> str:
    """The safetensors name of ``dtype``.

    Raises:
        UserError: the tensor called ``name`` cannot be kept in a safetensors file.
    """
    if dtype not in NAMES or layout is not torch.strided or name == _RESERVED:
        raise UserError(
            wrong=f"tensor {name!r} ({dtype}, {layout}) cannot be kept in a checkpoint",
            expected=f"a dense tensor of {', '.join(str(known).removeprefix('torch.') for known in NAMES)}",
            fix=f"convert it before saving, or rename it if it is called {_RESERVED!r}",
        )
    return NAMES[dtype]


def write_tensors(path: Path, entries: Sequence[Entry]) -> FileRecord:
    """Write ``entries`` to the new safetensors file ``path`` and force it to the disk.

    Raises:
        OSError: the file cannot be written.
    """
    ordered = sorted(entries, key=lambda entry: -DTYPE_BYTES[entry.dtype])  # so that every tensor lies aligned
    return write_file(path, _blocks(ordered))


def _blocks(entries: Sequence[Entry]) -> Iterator[bytes | memoryview]:
    yield header(entries)
    for entry in entries:
        tensor = entry.fetch()
        assert tensor.dtype is DTYPES[entry.dtype] and tensor.shape == entry.shape, entry
        yield bytes_of(tensor)


def header(entries: Sequence[Stored], metadata: Mapping[str, str] | None = None) -> bytes:
    """What a file begins with whose tensors follow one another in this order."""
    found: dict[str, object] = {} if metadata is None else {_RESERVED: dict(metadata)}
    start = 0
    for entry in entries:
        end = start + entry.bytes
        found[entry.key] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (start, end)}
        start = end
    assert len(found) == len(entries) + (metadata is not None), "two entries with one key"
    text = json.dumps(found).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The elements of a tensor of any layout, row by row."""
    dense = tensor.detach().cpu().contiguous()  # which, of up to one element, may keep any stride
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8).numpy().data


class ChunkFile:
    """The safetensors file ``<folder>/<file>`` of a checkpoint, mapped into memory.

    Raises:
        DamagedCheckpointError: it is not a safetensors file.
    """

    def __init__(self, folder: Path, file: str) -> None:
        self._folder, self._file = folder, file
        try:
            self._opened = safe_open(folder / file, framework="pt")
        except SafetensorError as error:
            raise damaged(folder, f"{file}: {error}") from error

    def read(self, chunk: Chunk, dtype: str) -> torch.Tensor:
        """``chunk`` as a CPU tensor over the mapped file: to be read and not kept.

        Raises:
            DamagedCheckpointError: what the file holds is not what the checkpoint's metadata says.
        """
        try:
            tensor: torch.Tensor = self._opened.get_tensor(chunk.key)
        except SafetensorError as error:
            raise damaged(self._folder, f"{self._file}: {error}") from error
        if tensor.dtype != DTYPES[dtype] or tensor.shape != chunk.sizes:
            found = f"{tensor.dtype} {list(tensor.shape)}, not {DTYPES[dtype]} {list(chunk.sizes)}"
            raise damaged(self._folder, f"{self._file}: {chunk.key[:200]} is {found}")
        return tensor


class TensorReader:
    """Reads whole tensors of a checkpoint one by one, whatever the layout that was saved.

    Args:
        tensors: the checkpoint's ``Contents.tensors``.
    """

    def __init__(self, path: Path, tensors: Mapping[str, TensorInfo]) -> None:
        self._path, self._tensors = path, tensors
        self._files: dict[str, ChunkFile] = {}

    def read(self, name: str) -> torch.Tensor:
        """The tensor ``name`` on the CPU, to be read and not changed: it may lie in the mapped file.

        Raises:
            DamagedCheckpointError: a file of it is not what the checkpoint's metadata says.
        """
        info = self._tensors[name]
        if len(info.chunks) == 1:
            return self._read(info.chunks[0], info.dtype)
        whole = torch.zeros(info.shape, dtype=DTYPES[info.dtype])
        for chunk in info.chunks:
            box = whole
            for dim, (start, length) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                box = box.narrow(dim, start, length)
            box.copy_(self._read(chunk, info.dtype))
        return whole

    def _read(self, chunk: Chunk, dtype: str) -> torch.Tensor:
        if chunk.file not in self._files:
            self._files[chunk.file] = ChunkFile(self._path, chunk.file)
        return self._files[chunk.file].read(chunk, dtype)
