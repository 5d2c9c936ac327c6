"""The storage that ``torch.distributed.checkpoint`` reads through, and a planner that accepts an exact fit only.

DCP works out which saved boxes overlap which boxes of this rank. Before the ranks read, the files are shared out
among those that read from them and hashed, so each file is hashed once whatever the number of ranks.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.metadata import Metadata as DcpMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from evocore.checkpoint.boxes import Boxes, BoxesLoadPlanner
from evocore.checkpoint.contents import Chunk, Contents, TensorInfo, wrong_digests
from evocore.checkpoint.errors import damaged
from evocore.checkpoint.tensor_files import DTYPES, ChunkFile
from evocore.errors import UserError

SHOWN = 5
"""Differences that an error spells out."""


class SafetensorsReader(StorageReader):
    """Reads the checkpoint whose description is ``contents``."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._chunks = {
            MetadataIndex(name, chunk.offsets): chunk
            for name, info in contents.tensors.items()
            for chunk in info.chunks
        }

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a reader serves one load."""

    def set_up_storage_reader(self, metadata: DcpMetadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing: the description came with the reader."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False

    def read_metadata(self, *args: Any) -> DcpMetadata:
        return DcpMetadata({name: _dcp_metadata(info) for name, info in self._contents.tensors.items()})

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        readers: dict[str, set[int]] = defaultdict(set)
        for rank, plan in enumerate(plans):
            for item in plan.items:
                readers[self._chunk(item).file].add(rank)
        to_hash: list[list[str]] = [[] for _ in plans]
        load = [0] * len(plans)
        for file, ranks in sorted(readers.items()):
            rank = min(ranks, key=lambda rank: (load[rank], rank))
            load[rank] += self._contents.manifest.files[file].bytes
            to_hash[rank].append(file)
        return [dataclasses.replace(plan, storage_data=files) for plan, files in zip(plans, to_hash, strict=True)]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        path = self._contents.path
        if wrong := wrong_digests(path, self._contents.manifest, plan.storage_data):
            raise damaged(path, "; ".join(wrong[:SHOWN]))
        by_file: dict[str, list[ReadItem]] = defaultdict(list)
        for item in plan.items:
            by_file[self._chunk(item).file].append(item)
        for file, items in by_file.items():
            opened = ChunkFile(path, file)
            for item in items:
                saved = opened.read(self._chunk(item), self._contents.tensors[item.storage_index.fqn].dtype)
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    saved = saved.narrow(dim, start, length)
                target = planner.resolve_tensor(item).detach()
                target.copy_(saved)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _chunk(self, item: ReadItem) -> Chunk:
        return self._chunks[item.storage_index]


@dataclass
class _Fit:
    """Sent by one rank to the coordinator: what it has, and where that differs from the checkpoint."""

    names: set[str]
    differences: list[str] = field(default_factory=list)


class StrictLoadPlanner(BoxesLoadPlanner):
    """Loads only if names, shapes and dtypes are equal on both sides, over all ranks together.

    Args:
        skip: patterns of names in the checkpoint that may stay unread, e.g. ``optimizer.*``.
    """

    def __init__(self, contents: Contents, skip: Sequence[str]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._contents, self._skip = contents, skip

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: DcpMetadata | None = None, is_coordinator: bool = False
    ) -> None:
        # The parent would put new tensors in the place of meta tensors, where the caller could not find them.
        self.original_state_dict = self.state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        fit = _Fit(set(self.state_dict), _differences(self.state_dict, self._contents.tensors))
        plan = LoadPlan([]) if fit.differences else super().create_local_plan()
        return dataclasses.replace(plan, planner_data=fit)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        fits: list[_Fit] = [plan.planner_data for plan in global_plan]
        differences = {difference: None for fit in fits for difference in fit.differences}
        unread = set(self._contents.tensors).difference(*(fit.names for fit in fits))
        for name in sorted(unread):
            if not any(fnmatchcase(name, pattern) for pattern in self._skip):
                differences[f"{name} is only in the checkpoint"] = None
        if differences:
            more = f"; and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise UserError(
                wrong=f"checkpoint {self._contents.path} does not fit: {'; '.join(list(differences)[:SHOWN])}{more}",
                expected="the names, shapes and dtypes of the tensors that are to be loaded",
                fix="load it with the settings it was saved with (its config.json), or skip what need not be read",
            )
        return global_plan

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("a checkpoint of ours holds tensors only; the parent would unpickle this")


def _differences(wanted: Mapping[str, Any], saved: Mapping[str, TensorInfo]) -> list[str]:
    found = []
    for name, tensor in wanted.items():
        if not isinstance(tensor, torch.Tensor | Boxes):
            found.append(f"{name} is to be loaded into a {type(tensor).__name__}, which is not a tensor")
        elif tensor.is_meta:
            found.append(f"{name} is to be loaded into a tensor on the meta device")
        elif name not in saved:
            found.append(f"{name} is not in the checkpoint")
        elif saved[name].shape != tensor.shape:
            found.append(f"{name} has shape {list(saved[name].shape)} in the checkpoint, not {list(tensor.shape)}")
        elif DTYPES[saved[name].dtype] != tensor.dtype:
            found.append(f"{name} is {DTYPES[saved[name].dtype]} in the checkpoint, not {tensor.dtype}")
    return found


def _dcp_metadata(info: TensorInfo) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=DTYPES[info.dtype]),
        size=torch.Size(info.shape),
        chunks=[
            ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.sizes))
            for chunk in info.chunks
        ],
    )
