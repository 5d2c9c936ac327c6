"""Writes a model as ``transformers`` reads it: safetensors files with an index, block by block.

However large a file is, what is in memory at a time is a block of a few megabytes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evocore.checkpoint.foreign.compose import compose
from evocore.checkpoint.foreign.fill import blocks
from evocore.checkpoint.foreign.safetensors_file import matrix_columns
from evocore.checkpoint.foreign.source import Source
from evocore.checkpoint.hugging_face.folder import CONFIG, INDEX, WEIGHTS
from evocore.checkpoint.tensor_files import DTYPES, Stored, bytes_of, header
from evocore.nn.weight_map import WeightMatch

SHARD_BYTES = 5_000_000_000
"""As ``save_pretrained`` has it."""
PIECE = 1 << 20  # bytes that are written at once


def write_weights(
    folder: Path,
    match: WeightMatch,
    source: Source,
    dtype: str,
    *,
    shard_bytes: int = SHARD_BYTES,
    kept: frozenset[str] = frozenset(),
) -> list[str]:
    """Write the tensors of a model into an existing folder.

    Args:
        source: our parameters and buffers, by the model's names.
        dtype: by the safetensors name, of what is written.
        shard_bytes: no file gets larger, unless one tensor is.
        kept: our tensors that stay in the dtype that they have.

    Returns:
        The names of the files with weights.

    Raises:
        UserError: a value does not fit the dtype.
        OSError: the disk is full, say.
    """
    shards: list[list[Stored]] = []
    room = 0
    for name, shape in match.theirs.items():
        ours = match.of_theirs[name].pieces[0].ours
        stored = Stored(name, source.tensors[ours].dtype if ours in kept else dtype, shape)
        if not shards or stored.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(stored)
        room -= stored.bytes
    count = len(shards)
    names = [WEIGHTS] if count == 1 else [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    for file, shard in zip(names, shards, strict=True):
        shard.sort(key=lambda stored: -DTYPES[stored.dtype].itemsize)  # so that every tensor lies aligned
        _write(folder / file, match, source, shard)
    if count > 1:
        where = {stored.key: file for file, shard in zip(names, shards, strict=True) for stored in shard}
        total = sum(stored.bytes for shard in shards for stored in shard)
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))})
    return names


def write_config(folder: Path, config: Mapping[str, Any], generation: Mapping[str, Any]) -> None:
    """Write ``config.json``, and ``generation_config.json`` if there is anything in it."""
    write_json(folder / CONFIG, config)
    if generation:
        write_json(folder / "generation_config.json", generation)


def write_json(path: Path, value: Any) -> None:
    """As ``transformers`` writes it."""
    _write_blocks(path, [(json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()])


def _write(path: Path, match: WeightMatch, source: Source, shard: Sequence[Stored]) -> None:
    _write_blocks(path, _shard(match, source, shard))


def _shard(match: WeightMatch, source: Source, shard: Sequence[Stored]) -> Iterator[bytes | memoryview]:
    yield header(shard, {"format": "pt"})
    for stored in shard:
        columns = matrix_columns(stored.shape)
        for block in blocks(range(math.prod(stored.shape) // columns), columns):
            yield bytes_of(compose(match, source, stored.key, block, range(columns), DTYPES[stored.dtype]))


def _write_blocks(path: Path, parts: Iterator[bytes | memoryview] | list[bytes]) -> None:
    with open(path, "xb") as file:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), PIECE):
                file.write(view[start : start + PIECE])
        file.flush()
        os.fsync(file.fileno())
