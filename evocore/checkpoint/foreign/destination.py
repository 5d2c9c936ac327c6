"""A folder that appears all at once or not at all, and never in the place of something."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from evocore.checkpoint.files import FileRecord, write_file
from evocore.checkpoint.folder import sync_folder
from evocore.errors import UserError


@contextmanager
def new_folder(destination: Path) -> Iterator[Path]:
    """A folder to write into; it is renamed to ``destination`` if all goes well, and deleted if not.

    Raises:
        UserError: ``destination`` exists and is not empty, or cannot be written.
    """
    require_free(destination)
    working = destination.with_name(f"{destination.name}.tmp-{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        working.mkdir()
    except OSError as error:
        raise UserError(
            f"cannot write to {destination}: {error.strerror}",
            "a folder beside which one can be made",
            "name another",
        ) from error
    try:
        yield working
        sync_folder(working)
        working.rename(destination)  # takes the place of an empty folder
        sync_folder(destination.parent)
    except OSError as error:
        raise UserError(
            f"{destination} was not written: {error}",
            f"a disk with room enough; {shutil.disk_usage(destination.parent).free / 1e9:.2f} GB are free there",
            "make room, or name another folder",
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def require_free(destination: Path) -> None:
    """Find out before any work whether ``new_folder`` would refuse a place.

    Raises:
        UserError: it exists and is not an empty folder.
    """
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if destination.exists() or destination.is_symlink():
        raise UserError(
            f"{destination} exists and is not an empty folder; nothing in it was changed",
            "a new folder, or an empty one",
            "name another, or move this one away",
        )


def copy_files(files: Sequence[Path], folder: Path, names: Sequence[str] | None = None) -> dict[str, FileRecord]:
    """Copy small files, under their own names or under others."""
    called = [file.name for file in files] if names is None else names
    return {name: write_file(folder / name, [file.read_bytes()]) for name, file in zip(called, files, strict=True)}
