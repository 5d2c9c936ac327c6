"""The folder that holds a run's checkpoints: listing, and making one appear all at once or not at all.

A checkpoint is written into ``<step>.tmp-<host>-<pid>`` and renamed to ``<step>`` when it is whole; the name tells a
later writer whether the one that left it behind is still alive.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

from evocore.checkpoint.errors import DamagedCheckpointError
from evocore.checkpoint.manifest import MANIFEST, Manifest, missing_or_cut, read_manifest
from evocore.errors import UserError

_STEP = re.compile("0|[1-9][0-9]*")
_LEFT_BEHIND = re.compile(r"(?P<step>\d+)\.(?P<kind>tmp|old)-(?P<host>.+)-(?P<pid>\d{1,9})")
_STALE_SECONDS = 24 * 3600  # another host's writer cannot be asked whether it lives


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint of a folder.

    Attributes:
        step: optimizer steps done when it was saved; also the folder's name.
        path: the checkpoint's own folder.
        problem: what is wrong with it, or None. Digests are not compared here, only presence and sizes.
        manifest: its manifest, or None if that cannot be read.
    """

    step: int
    path: Path
    problem: str | None
    manifest: Manifest | None = None

    @property
    def complete(self) -> bool:
        return self.problem is None


def local_folder(folder: str | Path) -> Path:
    """The path that ``PATH`` or ``local:PATH`` names.

    Raises:
        UserError: another storage prefix, e.g. ``boto3:``.
    """
    prefix, colon, rest = str(folder).partition(":")
    if not colon or "/" in prefix:
        return Path(folder)
    if prefix == "local":
        return Path(rest)
    raise UserError(
        wrong=f"checkpoint folder {str(folder)!r} has the storage prefix {prefix + ':'!r}",
        expected="PATH or local:PATH",
        fix="give a folder of a mounted file system; write local:PATH if the name itself has a colon",
    )


def list_checkpoints(folder: Path) -> list[CheckpointInfo]:
    """Every folder below ``folder`` whose name is a step number, newest first; empty if there is no ``folder``."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted((_info(path) for path in paths), key=lambda info: info.step, reverse=True)


def find_checkpoint(path: Path) -> Path:
    """A checkpoint's own folder, or the newest complete one in a folder of checkpoints or in a run's folder.

    Raises:
        UserError: there is none.
    """
    if (path / MANIFEST).is_file():
        return path
    for folder in (path / "checkpoints", path):
        for info in list_checkpoints(folder):
            if info.complete:
                return info.path
    raise UserError(
        f"{path}: no complete checkpoint there",
        f"a checkpoint's folder (it holds {MANIFEST}), a folder of checkpoints, or a run's folder",
        "look with `evocore checkpoint ls FOLDER`; a run saves every ckpt.checkpoint_every steps and at its end",
    )


def begin(folder: Path, step: int) -> Path:
    """Make the working folder for a checkpoint of ``step``, after clearing away what dead writers left.

    Raises:
        UserError: ``<folder>/<step>`` exists and is not a checkpoint of ours, so it may not be replaced.
        OSError: the folder cannot be made.
    """
    final = folder / str(step)
    if final.exists() and not (final / MANIFEST).is_file():
        raise UserError(
            wrong=f"{final} exists and is not a checkpoint that evocore wrote",
            expected=f"no {final.name}/, or one with a {MANIFEST}, which is then replaced",
            fix="save to another folder, or move this one away",
        )
    folder.mkdir(parents=True, exist_ok=True)
    _clear_left_behind(folder)
    working = _beside(final, "tmp")
    working.mkdir()
    return working


def commit(working: Path, final: Path) -> None:
    """Rename a whole checkpoint to its name, in place of an older one of the same step if there is one."""
    sync_folder(working)
    old = _beside(final, "old") if final.exists() else None
    if old:
        final.rename(old)
    try:
        working.rename(final)
    except OSError:
        if old:
            old.rename(final)
        raise
    sync_folder(final.parent)
    if old:
        remove(old)


def prune(folder: Path, newest: int, keep_last: int) -> None:
    """Of the steps up to ``newest``, keep the last ``keep_last`` complete checkpoints and everything between them.

    Later steps are left alone: they belong to a run that was rolled back, and only its owner knows whether to drop
    them. So are folders without a manifest, which evocore did not write.
    """
    upto = [info for info in list_checkpoints(folder) if info.step <= newest]
    kept = [info.step for info in upto if info.complete][:keep_last]
    for info in upto:
        if len(kept) == keep_last and info.step < kept[-1] and (info.path / MANIFEST).is_file():
            remove(info.path)


def remove(path: Path) -> None:
    """Delete a folder; warn instead of failing: what the caller came for is done, or has an error of its own."""
    try:
        if _STEP.fullmatch(path.name):  # so that a deletion cut short leaves nothing that looks like a checkpoint
            path = path.rename(_beside(path, "tmp"))
        shutil.rmtree(path)
    except OSError as error:
        warnings.warn(f"{path} could not be removed and can be deleted by hand: {error}", stacklevel=2)


def sync_folder(folder: Path) -> None:
    """Force the folder's entries (new and renamed files) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _info(path: Path) -> CheckpointInfo:
    step = int(path.name)
    try:
        manifest = read_manifest(path)
    except DamagedCheckpointError as error:
        return CheckpointInfo(step, path, error.problem)
    except UserError as error:  # a newer evocore wrote it
        return CheckpointInfo(step, path, error.wrong)
    problems = missing_or_cut(path, manifest)
    if manifest.step != step:
        problems.append(f"its manifest is of step {manifest.step}")
    return CheckpointInfo(step, path, "; ".join(problems) or None, manifest)


def _beside(final: Path, kind: str) -> Path:
    return final.with_name(f"{final.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _clear_left_behind(folder: Path) -> None:
    for path in list(folder.iterdir()):
        match = _LEFT_BEHIND.fullmatch(path.name)
        if match is None or _may_be_alive(path, match["host"], int(match["pid"])):
            continue
        final = folder / match["step"]
        if match["kind"] == "old" and not final.exists():
            path.rename(final)  # its writer died between the two renames of a replacement
        else:
            remove(path)


def _may_be_alive(path: Path, host: str, pid: int) -> bool:
    if host != socket.gethostname():
        return time.time() - path.stat().st_mtime < _STALE_SECONDS
    if pid == os.getpid():
        return False  # an earlier attempt of ours, or of a process that had our number before a restart
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it lives, under another user
    return True
