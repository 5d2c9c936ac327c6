"""The storage that ``torch.distributed.checkpoint`` writes through: safetensors and JSON in place of its pickles.

DCP plans who writes which box of which tensor and makes all ranks agree on success or failure. Everything that has to
cross ranks travels inside its plans and results, so a save needs no collective of our own, and a rank that fails at
any point fails the save everywhere instead of leaving the others waiting.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata
from torch.distributed.checkpoint.metadata import Metadata as DcpMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from evocore.checkpoint.boxes import BoxesSavePlanner
from evocore.checkpoint.contents import Chunk, TensorInfo
from evocore.checkpoint.files import THREADS, FileRecord
from evocore.checkpoint.state import JSON, check_json, merge_states
from evocore.checkpoint.tensor_files import Entry, dtype_name, write_tensors
from evocore.errors import UserError

FILE_BYTES = 256 << 20
"""A rank starts another file at this size, so that its files are hashed and written by several threads."""


@dataclass(frozen=True)
class Saved:
    """What all ranks together wrote, as the coordinator sees it at the end."""

    folder: Path
    tensors: dict[str, TensorInfo]
    files: dict[str, FileRecord]
    state: dict[str, JSON]
    world_size: int


@dataclass(frozen=True)
class _Assignment:
    """Sent by the coordinator to one rank."""

    folder: str
    rank: int


@dataclass(frozen=True)
class _Stored:
    """Sent by a rank to the coordinator for each box that it wrote."""

    dtype: str
    shape: tuple[int, ...]
    chunk: Chunk
    record: FileRecord


def save_planner() -> BoxesSavePlanner:
    """Plans a flat mapping of tensors; what several ranks hold alike is written once, by the lowest of them."""
    return BoxesSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)


class SafetensorsWriter(StorageWriter):
    """Writes one checkpoint.

    Args:
        state: this rank's JSON state.
        begin: called on the coordinator once every rank has planned; makes and returns the folder to write into.
        finish: called on the coordinator once every rank's files are on the disk.
    """

    def __init__(self, state: Mapping[str, JSON], begin: Callable[[], Path], finish: Callable[[Saved], None]) -> None:
        self._state, self._begin, self._finish = dict(state), begin, finish
        self._merged: dict[str, JSON] = {}
        self._folder: Path | None = None
        self._world_size = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a writer serves one save."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: what a rank needs comes with its plan."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO or item.tensor_data is None:
                raise UserError(
                    wrong=f"{item.index.fqn!r} was given among the tensors and is not one",
                    expected="a torch.Tensor",
                    fix="pass it in `state` if it is JSON, or make a tensor of it",
                )
            properties = item.tensor_data.properties
            dtype_name(item.index.fqn, properties.dtype, properties.layout)
        check_json(self._state, "state")  # before it is sent: a failure to pickle it would leave the others waiting
        return dataclasses.replace(plan, storage_data=self._state)

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self._merged = merge_states(plan.storage_data for plan in plans)
        self._world_size = len(plans)
        self._folder = self._begin()
        return [
            dataclasses.replace(plan, storage_data=_Assignment(str(self._folder), rank))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        todo: _Assignment = plan.storage_data
        whole = [item for item in plan.items if _is_whole(item)]
        parts = [item for item in plan.items if not _is_whole(item)]
        jobs = [(f"tensors-{todo.rank:05d}-{n:03d}.safetensors", items) for n, items in enumerate(_split(whole))]
        jobs += [(f"shards-{todo.rank:05d}-{n:03d}.safetensors", items) for n, items in enumerate(_split(parts))]
        with ThreadPoolExecutor(THREADS) as pool:
            results = pool.map(lambda job: _write(Path(todo.folder), job[0], job[1], planner), jobs)
            written = [result for batch in results for result in batch]
        future: Future[list[WriteResult]] = Future()
        future.set_result(written)
        return future

    def finish(self, metadata: DcpMetadata, results: list[list[WriteResult]]) -> None:
        chunks: dict[str, list[_Stored]] = {name: [] for name in metadata.state_dict_metadata}
        files: dict[str, FileRecord] = {}
        for batch in results:
            for result in batch:
                stored: _Stored = result.storage_data
                chunks[result.index.fqn].append(stored)
                files[stored.chunk.file] = stored.record
        tensors = {
            name: TensorInfo(dtype=parts[0].dtype, shape=parts[0].shape, chunks=tuple(part.chunk for part in parts))
            for name, parts in chunks.items()
        }
        assert self._folder is not None
        self._finish(Saved(self._folder, tensors, files, self._merged, self._world_size))


def _box(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None and item.tensor_data.chunk is not None, item
    return item.tensor_data.chunk


def _is_whole(item: WriteItem) -> bool:
    assert item.tensor_data is not None
    return _box(item).sizes == item.tensor_data.size


def _split(items: list[WriteItem]) -> list[list[WriteItem]]:
    groups: list[list[WriteItem]] = []
    room = 0
    for item in items:
        size = item.tensor_storage_size() or 0
        if not groups or size > room:
            groups.append([])
            room = FILE_BYTES
        groups[-1].append(item)
        room -= size
    return groups


def _write(folder: Path, file: str, items: list[WriteItem], planner: SavePlanner) -> list[WriteResult]:
    entries = [_entry(item, planner) for item in items]
    record = write_tensors(folder / file, entries)
    return [
        WriteResult(
            index=item.index,
            size_in_bytes=entry.bytes,
            storage_data=_Stored(
                dtype=entry.dtype,
                shape=tuple(item.tensor_data.size),  # type: ignore[union-attr]
                chunk=Chunk(offsets=tuple(_box(item).offsets), sizes=entry.shape, file=file, key=entry.key),
                record=record,
            ),
        )
        for item, entry in zip(items, entries, strict=True)
    ]


def _entry(item: WriteItem, planner: SavePlanner) -> Entry:
    assert item.tensor_data is not None
    name, box, properties = item.index.fqn, _box(item), item.tensor_data.properties
    key = name if _is_whole(item) else f"{name}@{'_'.join(str(offset) for offset in box.offsets)}"
    dtype = dtype_name(name, properties.dtype, properties.layout)
    return Entry(key, dtype, tuple(box.sizes), partial(_resolve, planner, item))


def _resolve(planner: SavePlanner, item: WriteItem) -> torch.Tensor:
    tensor = planner.resolve_data(item)
    assert isinstance(tensor, torch.Tensor)
    if tensor.is_meta:
        raise UserError(
            wrong=f"tensor {item.index.fqn!r} is on the meta device and has no values to save",
            expected="a tensor on a real device",
            fix="materialise the model before saving",
        )
    return tensor
