"""``manifest.json``: written last, so its presence says that a checkpoint is whole, and it says what whole means.

A checkpoint may come from a stranger: everything read here is checked against a schema, and a file name can only name
a file beside the manifest.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from evocore.checkpoint.errors import damaged
from evocore.checkpoint.files import FileRecord
from evocore.errors import UserError

MANIFEST = "manifest.json"
FORMAT = "evocore-checkpoint"
VERSION = 1
"""Version of the layout that this code writes; it reads this one and refuses a newer one by number."""

FileName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=200)]


class _Head(BaseModel):
    model_config = ConfigDict(strict=True)

    format: str
    version: int


class Manifest(_Head):
    """What a complete checkpoint consists of.

    Attributes:
        step: optimizer steps done when it was saved.
        created: ISO 8601 time in UTC.
        evocore: version that wrote it.
        torch: version that wrote it.
        world_size: number of ranks that wrote it.
        files: every file beside the manifest, by name.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    format: str = FORMAT
    version: int = VERSION
    step: int = Field(ge=0)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    evocore: str
    torch: str
    world_size: int = Field(ge=1)
    files: dict[FileName, FileRecord]

    @property
    def bytes(self) -> int:
        """Size of the checkpoint without the manifest itself."""
        return sum(record.bytes for record in self.files.values())


def read_manifest(path: str | Path) -> Manifest:
    """Read ``<path>/manifest.json``.

    Raises:
        UserError: there is no folder ``path``, or a newer evocore wrote it.
        DamagedCheckpointError: the manifest is missing or is not one.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            wrong=f"there is no checkpoint folder {path}",
            expected=f"a folder <step>/ that holds a {MANIFEST}",
            fix="`evocore checkpoint ls FOLDER` lists the checkpoints of a run",
        )
    if not (path / MANIFEST).is_file():
        raise damaged(path, f"{MANIFEST} is missing, so it was cut short or evocore did not write it")
    try:
        text = (path / MANIFEST).read_bytes()
        head = _Head.model_validate_json(text)
        if head.format != FORMAT:
            raise damaged(path, f"{MANIFEST} says format {head.format[:50]!r}, not {FORMAT!r}")
        if head.version > VERSION:
            raise UserError(
                wrong=f"checkpoint {path} has format version {head.version}",
                expected=f"version {VERSION} or older",
                fix="update evocore to the version that wrote it",
            )
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise damaged(path, f"{MANIFEST}: {first_mistake(error)}") from error


def missing_or_cut(path: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files' presence and sizes; reads no contents.

    A pipe or a device in a file's place counts as missing: opening one could block for ever.
    """
    found = []
    for name, record in manifest.files.items():
        if not (path / name).is_file():
            found.append(f"{name} is missing")
        elif (length := (path / name).stat().st_size) != record.bytes:
            found.append(f"{name} has {length:,} bytes instead of {record.bytes:,}")
    return found


def first_mistake(error: ValidationError) -> str:
    """The first complaint of a schema, on one line."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:200]
    return f"{place}: {first['msg']}" if place else str(first["msg"])
