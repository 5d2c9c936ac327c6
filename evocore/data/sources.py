"""Text that can be tokenised: which files there are, which documents they hold, and which of those are held out.

Text and source files are one document each, ``.jsonl`` has one in each line, ``.json`` one or a list of them. What is
held out, and what a limit on the size leaves in, depends on hashes of relative paths: not on the order of the files,
nor on where they lie.
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

from evocore.errors import UserError

DEFAULT_SUFFIXES = (".txt", ".json", ".jsonl")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell them, UTF-8 cannot


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


def read_documents(file: SourceFile, field: str) -> Iterator[tuple[str, str]]:
    """Key and text of each document in a file; nothing for a text file that is not UTF-8.

    Raises:
        UserError: if a JSON file is malformed or an object has no text in ``field``.
    """
    if file.path.suffix == ".jsonl":
        yield from _read_lines(file, field)
    elif file.path.suffix == ".json":
        content = _json(file.path.read_bytes(), f"{file.path}")
        for number, entry in enumerate(content if isinstance(content, list) else [content]):
            yield f"{file.key}:{number}", _text(entry, field, f"{file.path}, entry {number}")
    else:
        try:
            yield file.key, file.path.read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            return


def _read_lines(file: SourceFile, field: str) -> Iterator[tuple[str, str]]:
    with file.path.open("rb") as lines:
        if file.start:
            lines.seek(file.start - 1)
            lines.readline()  # the line that began before belongs to the part before
        while (offset := lines.tell()) < file.stop and (line := lines.readline()):
            if line.strip():
                where = f"{file.path}, line at byte {offset}"
                yield f"{file.key}:{offset}", _text(_json(line, where), field, where)


def _json(content: bytes, where: str) -> object:
    try:
        return json.loads(content)
    except ValueError as error:
        raise UserError(
            f"{where} is not valid JSON ({error})", "JSON in UTF-8", "mend or leave out the file"
        ) from None


def _text(entry: object, field: str, where: str) -> str:
    text = entry.get(field) if isinstance(entry, dict) else entry
    if not isinstance(text, str):
        keys = ", ".join(map(repr, entry)) if isinstance(entry, dict) else type(entry).__name__
        raise UserError(
            f"{where} has no text under {field!r}, but {keys}",
            f'a string, or an object such as {{"{field}": "..."}}',
            "name the field that holds the text with --field",
        )
    return _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
