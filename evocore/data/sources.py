"""Text that can be tokenised: which files there are, which documents they hold, and which of those are held out.

Text and source files are one document each, ``.jsonl`` has one in each line, ``.json`` one or a list of them. What is
held out depends on hashes: of relative paths, and of what is in a JSON record. It does not depend on the order of
files or records, nor on where they lie, and what is there twice is on one side. What a limit on the size leaves in
depends on hashes of relative paths.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from evocore.errors import UserError

DEFAULT_SUFFIXES = (".txt", ".json", ".jsonl")


@dataclass(frozen=True)
class SourceFile:
    """A file, or of a ``.jsonl`` file the lines that begin in ``start`` to ``stop`` (bytes, exclusive).

    Attributes:
        key: path relative to the source folder, with forward slashes.
    """

    path: Path
    key: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.stop - self.start

    @property
    def is_json(self) -> bool:
        """Whether it holds many documents, which are held out one by one."""
        return self.path.suffix in (".json", ".jsonl")


@dataclass(frozen=True)
class SourceSet:
    """What becomes one folder of the dataset."""

    name: str
    files: tuple[SourceFile, ...]


def hashed(key: str, purpose: str) -> float:
    """A number in [0, 1) that depends on the words alone, and is independent for each purpose."""
    digest = hashlib.sha256(f"{purpose}:{key}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def find_sources(
    sources: Sequence[str | Path],
    suffixes: Sequence[str] = DEFAULT_SUFFIXES,
    exclude: Sequence[str] = (),
    max_bytes: int | None = None,
) -> list[SourceSet]:
    """The files behind ``sources`` in sorted order, one set for each source.

    Args:
        sources: files, and folders that are searched.
        suffixes: endings of the files that are taken from a folder.
        exclude: shell patterns; a file or folder in a source folder whose name or relative path matches is left out.
        max_bytes: take a pseudo-random choice of the files, up to this size in all; a ``.jsonl`` file can be cut.

    Raises:
        UserError: if a source is missing or there is nothing to read.
    """
    names: set[str] = set()
    sets = []
    for source in map(Path, sources):
        if not source.exists():
            raise UserError(f"the source {source} does not exist", "a file or a folder with text", "mend the path")
        found = [source] if source.is_file() else _walk(source, suffixes, exclude)
        root = source.parent if source.is_file() else source
        files = [SourceFile(path, path.relative_to(root).as_posix(), 0, path.stat().st_size) for path in found]
        sets.append(SourceSet(_unique_name(source, names), tuple(file for file in files if file.size)))
    if max_bytes is not None:
        sets = _limit(sets, max_bytes)
    if not any(source_set.files for source_set in sets):
        limit = "" if max_bytes is None else f" that fit into max_bytes={max_bytes}"
        raise UserError(
            f"no text in {', '.join(map(str, sources))}",
            f"files that end in {', '.join(suffixes)}{limit}",
            "name the endings with --suffix (data.raw.suffixes), or other sources",
        )
    return [source_set for source_set in sets if source_set.files]


def _walk(folder: Path, suffixes: Sequence[str], exclude: Sequence[str]) -> list[Path]:
    def excluded(root: str, name: str) -> bool:
        relative = Path(root, name).relative_to(folder).as_posix()
        return any(fnmatch(name, pattern) or fnmatch(relative, pattern) for pattern in exclude)

    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not excluded(root, name)]
        found += [Path(root, name) for name in names if name.endswith(tuple(suffixes)) and not excluded(root, name)]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())


def _unique_name(source: Path, taken: set[str]) -> str:
    base = source.resolve()
    wanted = re.sub(r"[^A-Za-z0-9_.-]", "_", base.stem if base.is_file() else base.name) or "text"
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}-{number}"
    taken.add(name)
    return name


def _limit(sets: list[SourceSet], max_bytes: int) -> list[SourceSet]:
    left = max_bytes
    kept: dict[SourceFile, SourceFile] = {}
    for file in sorted({file for one in sets for file in one.files}, key=lambda file: hashed(file.key, "limit")):
        if file.size <= left:
            kept[file] = file
        elif file.path.suffix == ".jsonl" and left:
            kept[file] = replace(file, stop=left)
        else:
            continue
        left -= kept[file].size
    return [replace(one, files=tuple(kept[file] for file in one.files if file in kept)) for one in sets]


@dataclass(frozen=True)
class Place:
    """Where a record is; as text, for a message, it names file and line."""

    path: Path
    entry: int | None = None
    offset: int | None = None

    def __str__(self) -> str:
        if self.offset is None:
            return f"{self.path}" if self.entry is None else f"{self.path}, entry {self.entry}"
        with self.path.open("rb") as file:
            before = file.read(self.offset).count(b"\n")
        return f"{self.path}, line {before + 1}"


class SourceRecord(NamedTuple):
    """One document of a file.

    Attributes:
        key: what its hash says whether it is held out: the file's key, or the canonical form of a JSON record.
        content: text of a text file; what the JSON says otherwise.
    """

    key: str
    content: Any
    place: Place


def read_records(file: SourceFile) -> Iterator[SourceRecord]:
    """The documents of a file; none of a text file that is not UTF-8.

    Raises:
        UserError: if a JSON file is malformed.
    """
    if file.path.suffix == ".jsonl":
        yield from _read_lines(file)
    elif file.path.suffix == ".json":
        content = _json(file.path.read_bytes(), Place(file.path))
        for number, entry in enumerate(content if isinstance(content, list) else [content]):
            yield SourceRecord(_canonical(entry), entry, Place(file.path, entry=number))
    else:
        try:
            yield SourceRecord(file.key, file.path.read_bytes().decode("utf-8"), Place(file.path))
        except UnicodeDecodeError:
            return


def _read_lines(file: SourceFile) -> Iterator[SourceRecord]:
    with file.path.open("rb") as lines:
        if file.start:
            lines.seek(file.start - 1)
            lines.readline()  # the line that began before belongs to the part before
        while (offset := lines.tell()) < file.stop and (line := lines.readline()):
            if line.strip():
                place = Place(file.path, offset=offset)
                entry = _json(line, place)
                yield SourceRecord(_canonical(entry), entry, place)


def _canonical(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True)


def _json(content: bytes, place: Place) -> object:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{place} is not valid JSON ({error})", "JSON in UTF-8", "mend or leave out the file"
        ) from None
