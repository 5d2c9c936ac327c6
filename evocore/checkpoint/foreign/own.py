"""A checkpoint of evocore as a ``Source`` of its model's weights, and made of any other source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from torch import Tensor

from evocore.checkpoint.checkpointer import complete
from evocore.checkpoint.contents import Chunk, Contents, TensorInfo
from evocore.checkpoint.dcp_write import FILE_BYTES, Saved
from evocore.checkpoint.files import FileRecord, write_file
from evocore.checkpoint.foreign.fill import blocks, fill_rows, row_runs
from evocore.checkpoint.foreign.safetensors_file import SafetensorsFile, matrix_columns
from evocore.checkpoint.foreign.source import Slab, Source, TensorFacts, read_slabs
from evocore.checkpoint.state import JSON
from evocore.checkpoint.tensor_files import DTYPES, Stored, bytes_of, header
from evocore.nn.weight_map import Shape, WeightMatch
from evocore.parallel.placement import Box

WRITERS = 2
"""Files written at once: reading, hashing and writing overlap, and memory stays small."""
START: dict[str, JSON] = {"progress": {"steps": 0, "batches": 0, "tokens": 0, "skipped_steps": 0}}
"""State of a model that was not trained here."""


class EvocoreCheckpoint:
    """The weights and buffers of a checkpoint, whatever layout saved them, under the model's names.

    Digests are not compared: that would read each byte twice (``evocore checkpoint verify`` does).

    Attributes:
        tensors: what it holds.
        buffers: which of them are no parameters.
        bytes_read: of values, so far.
    """

    def __init__(self, contents: Contents) -> None:
        self.name, self._path = f"checkpoint {contents.path}", contents.path
        self._infos = {
            name.partition(".")[2]: info
            for name, info in contents.tensors.items()
            if name.startswith(("master.", "buffer."))
        }
        self.buffers = {name.removeprefix("buffer.") for name in contents.tensors if name.startswith("buffer.")}
        self.tensors: Mapping[str, TensorFacts] = {
            name: TensorFacts(info.dtype, info.shape) for name, info in self._infos.items()
        }
        self._files: dict[str, SafetensorsFile] = {}
        self._slabs: dict[str, list[Slab]] = {}
        self._lock = Lock()

    @property
    def bytes_read(self) -> int:
        return sum(file.bytes_read for file in self._files.values())

    def read(self, name: str, rows: range, columns: range) -> Tensor:
        """As in ``Source``."""
        info = self._infos[name]
        with self._lock:
            if name not in self._slabs:
                self._slabs[name] = [slab for chunk in info.chunks for slab in self._chunk(info.shape, chunk)]
        return read_slabs(self._slabs[name], rows, columns, DTYPES[info.dtype])

    def _chunk(self, shape: Shape, chunk: Chunk) -> Iterator[Slab]:
        if chunk.file not in self._files:
            self._files[chunk.file] = SafetensorsFile(self._path / chunk.file)
        read = partial(self._files[chunk.file].read, chunk.key)
        box = Box(chunk.offsets, chunk.sizes)
        columns = range(box.offsets[-1], box.offsets[-1] + box.sizes[-1]) if len(shape) > 1 else range(1)
        done = 0
        for run in row_runs(shape, box):
            yield Slab(run, columns, partial(_read_later_rows, read, done))
            done += len(run)


def _read_later_rows(read: partial[Tensor], first: int, rows: range, columns: range) -> Tensor:
    return read(range(rows.start + first, rows.stop + first, rows.step), columns)


def write_checkpoint(
    folder: Path,
    match: WeightMatch,
    source: Source,
    config: JSON,
    files: Mapping[str, FileRecord],
    buffers: frozenset[str] = frozenset(),
) -> int:
    """Make a checkpoint of step 0 of the weights in ``source``, which is known to fit; float32, as all checkpoints.

    It has no state of an optimizer: a run can start from it with ``load_ckpt_info``.

    Args:
        folder: exists; what is in ``files`` is already there.
        config: the resolved config of its model.
        buffers: names in the model that are no parameters.

    Returns:
        How many files hold weights.
    """
    groups: list[list[tuple[str, Stored]]] = []
    room = 0
    for name, shape in match.ours.items():
        stored = Stored(f"{'buffer' if name in buffers else 'master'}.{name}", "F32", shape)
        if not groups or stored.bytes > room:
            groups.append([])
            room = FILE_BYTES
        groups[-1].append((name, stored))
        room -= stored.bytes
    names = [f"tensors-00000-{number:03d}.safetensors" for number in range(len(groups))]
    with ThreadPoolExecutor(WRITERS) as pool:
        records = list(pool.map(partial(_write, folder, match, source), names, groups))
    tensors = {
        stored.key: TensorInfo(
            dtype=stored.dtype,
            shape=stored.shape,
            chunks=(Chunk(offsets=(0,) * len(stored.shape), sizes=stored.shape, file=file, key=stored.key),),
        )
        for file, group in zip(names, groups, strict=True)
        for _, stored in group
    }
    written = {**files, **dict(zip(names, records, strict=True))}
    complete(Saved(folder, tensors, written, dict(START), 1), 0, config)
    return len(names)


def _write(
    folder: Path, match: WeightMatch, source: Source, file: str, group: Sequence[tuple[str, Stored]]
) -> FileRecord:
    return write_file(folder / file, _file(match, source, group))


def _file(match: WeightMatch, source: Source, group: Sequence[tuple[str, Stored]]) -> Iterator[bytes | memoryview]:
    yield header([stored for _, stored in group])
    for name, stored in group:
        columns = matrix_columns(stored.shape)
        for block in blocks(range(math.prod(stored.shape) // columns), columns):
            part = torch.empty(len(block), columns)
            fill_rows(match, source, name, block, range(columns), part)
            yield bytes_of(part)
