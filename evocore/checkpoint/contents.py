"""What a checkpoint holds, read without loading a tensor and without importing torch.

``metadata.json`` describes each tensor by dtype, global shape and chunks, so that any layout can be read into any
other. It may come from a stranger: chunks must lie inside their tensor and add up to it, and the files that hold them
must be in the manifest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from evocore.checkpoint.errors import DamagedCheckpointError, damaged
from evocore.checkpoint.files import THREADS, sha256_of
from evocore.checkpoint.manifest import FileName, Manifest, first_mistake, missing_or_cut, read_manifest
from evocore.checkpoint.state import JSON

METADATA, STATE, CONFIG = "metadata.json", "state.json", "config.json"
DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
"""Bytes per element by the safetensors format's dtype names."""

Size = Annotated[int, Field(ge=0, lt=1 << 63)]


class Chunk(BaseModel):
    """One box of a tensor: where it lies in the tensor, and the file and key that hold it."""

    model_config = ConfigDict(frozen=True, strict=True)

    offsets: tuple[Size, ...]
    sizes: tuple[Size, ...]
    file: FileName
    key: str


class TensorInfo(BaseModel):
    """One tensor at rest: dtype by the safetensors name, global shape, and the chunks that make it up."""

    model_config = ConfigDict(frozen=True, strict=True)

    dtype: str
    shape: tuple[Size, ...]
    chunks: tuple[Chunk, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    @model_validator(mode="after")
    def _chunks_fill_the_tensor(self) -> TensorInfo:
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"unknown dtype {self.dtype[:50]!r}")
        for chunk in self.chunks:
            if not len(chunk.offsets) == len(chunk.sizes) == len(self.shape):
                raise ValueError("a chunk has another number of dimensions than its tensor")
            if any(o + s > n for o, s, n in zip(chunk.offsets, chunk.sizes, self.shape, strict=True)):
                raise ValueError("a chunk reaches beyond its tensor")
        if sum(math.prod(chunk.sizes) for chunk in self.chunks) != math.prod(self.shape):
            raise ValueError("the chunks do not add up to the tensor")
        return self


class Metadata(BaseModel):
    """``metadata.json``."""

    model_config = ConfigDict(frozen=True, strict=True)

    tensors: dict[str, TensorInfo]


@dataclass(frozen=True)
class Contents:
    """Everything in a checkpoint except the tensors' values."""

    path: Path
    manifest: Manifest
    tensors: Mapping[str, TensorInfo]
    state: dict[str, JSON]
    config: JSON


def read_contents(path: str | Path) -> Contents:
    """Read the description of the checkpoint at ``path``; the names and shapes of its tensors are in ``.tensors``.

    The presence and size of every file and the digests of the JSON files are checked; those of the tensor files are
    not (see :func:`verify`).

    Raises:
        UserError: there is no such folder, or a newer evocore wrote it.
        DamagedCheckpointError: a file is missing, cut short or altered.
    """
    path = Path(path)
    manifest = read_manifest(path)
    if problems := missing_or_cut(path, manifest):
        raise damaged(path, "; ".join(problems[:5]))
    try:
        metadata = Metadata.model_validate_json(_verified(path, manifest, METADATA))
    except ValidationError as error:
        raise damaged(path, f"{METADATA}: {first_mistake(error)}") from error
    for name, info in metadata.tensors.items():
        if unknown := {chunk.file for chunk in info.chunks} - set(manifest.files):
            raise damaged(path, f"{METADATA}: {name[:200]} lies in {unknown.pop()}, which the manifest does not list")
    state = _json(path, manifest, STATE)
    if not isinstance(state, dict):
        raise damaged(path, f"{STATE} does not hold an object")
    config = _json(path, manifest, CONFIG) if CONFIG in manifest.files else None
    return Contents(path, manifest, metadata.tensors, state, config)


def wrong_digests(path: Path, manifest: Manifest, names: list[str]) -> list[str]:
    """Which of the files ``names`` do not have the SHA-256 that the manifest gives; reads them whole."""
    with ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(sha256_of, [path / name for name in names])
        return [
            f"{name} was altered: its SHA-256 is not the one in the manifest"
            for name, digest in zip(names, digests, strict=True)
            if digest != manifest.files[name].sha256
        ]


def verify(path: str | Path, *, hashes: bool) -> list[str]:
    """Everything that is wrong with the checkpoint at ``path``, one line each; empty for a good one.

    Args:
        hashes: also read every file and compare its SHA-256.

    Raises:
        UserError: there is no such folder, or a newer evocore wrote it.
    """
    path = Path(path)
    try:
        manifest = read_manifest(path)
        problems = missing_or_cut(path, manifest)
        if hashes and not problems:
            problems = wrong_digests(path, manifest, sorted(manifest.files))
        if not problems:
            read_contents(path)
    except DamagedCheckpointError as error:
        return [error.problem]
    return problems


def _verified(path: Path, manifest: Manifest, name: str) -> bytes:
    if name not in manifest.files:
        raise damaged(path, f"the manifest does not list {name}")
    if wrong := wrong_digests(path, manifest, [name]):
        raise damaged(path, wrong[0])
    return (path / name).read_bytes()


def _json(path: Path, manifest: Manifest, name: str) -> JSON:
    try:
        value: JSON = json.loads(_verified(path, manifest, name))
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"{name} is not JSON: {error}") from error
    return value
