"""The door for training: save, find the newest whole checkpoint, load it into any layout."""

from __future__ import annotations

import errno
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

from evocore import __version__
from evocore.checkpoint import folder as folders
from evocore.checkpoint.boxes import Boxes
from evocore.checkpoint.contents import CONFIG, METADATA, STATE, Contents, Metadata, read_contents
from evocore.checkpoint.dcp_read import SafetensorsReader, StrictLoadPlanner
from evocore.checkpoint.dcp_write import SafetensorsWriter, Saved, save_planner
from evocore.checkpoint.errors import DamagedCheckpointError, SaveError
from evocore.checkpoint.files import write_file
from evocore.checkpoint.folder import CheckpointInfo
from evocore.checkpoint.manifest import MANIFEST, Manifest, missing_or_cut
from evocore.checkpoint.ranks import Ranks
from evocore.checkpoint.state import JSON, check_json, to_json
from evocore.errors import UserError


@dataclass(frozen=True)
class Resumed:
    """What :meth:`Checkpointer.load_latest` found.

    Attributes:
        info: the checkpoint that was loaded, or None if no whole one exists.
        state: its JSON state.
        passed_over: newer checkpoints that were not usable, with their problems; the user must be told of them.
    """

    info: CheckpointInfo | None
    state: dict[str, JSON]
    passed_over: list[CheckpointInfo]


class Checkpointer:
    """Saves and loads the checkpoints of one folder.

    Methods marked *collective* must be called by every rank of the process group, in the same order; all ranks return
    or all raise the same error. The folder must be on storage that all ranks share.

    Args:
        folder: ``PATH`` or ``local:PATH``; made at the first save.
        process_group: ranks that save and load together: by default all, or this process alone where
            ``torch.distributed`` is not initialised. It must be able to send CPU objects.
        keep_last: after each save, keep this many complete checkpoints and delete older ones; None keeps all.

    Raises:
        UserError: an unknown storage prefix, or ``keep_last`` below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        process_group: dist.ProcessGroup | None = None,
        keep_last: int | None = None,
    ) -> None:
        self.folder = folders.local_folder(folder)
        if keep_last is not None and keep_last < 1:
            raise UserError(
                wrong=f"keep_last is {keep_last}",
                expected="at least 1, or None to keep every checkpoint",
                fix="set keep_last to the number of checkpoints to keep",
            )
        self._group, self._keep_last = process_group, keep_last

    def save(
        self,
        step: int,
        *,
        tensors: Mapping[str, torch.Tensor | Boxes],
        state: Mapping[str, JSON],
        config: JSON = None,
    ) -> Path:
        """Collective. Write a checkpoint of ``step`` and return its folder once it is whole and on the disk.

        A tensor or state key that several ranks hold is replicated and written once, from the lowest rank: parts that
        differ are DTensors or ``Boxes`` (each rank writes its own boxes) or carry the rank in their name.

        Args:
            step: optimizer steps done; a checkpoint of the same step is replaced.
            tensors: name to tensor, any dense layout, any device.
            state: JSON values; floats come back bit for bit.
            config: the resolved config, kept beside it for people and tools; taken from the lowest rank.

        Raises:
            UserError: something that cannot be kept; or ``<step>/`` exists and is not a checkpoint of ours.
            SaveError: the disk is full, or writing failed otherwise. The checkpoints before it are untouched.
        """
        assert step >= 0, step
        working: list[Path] = []

        def begin() -> Path:
            check_json(config, "config")
            working.append(folders.begin(self.folder, step))
            return working[0]

        def finish(saved: Saved) -> None:
            self._complete(saved, step, config)

        ranks = Ranks(self._group)
        try:
            with self._save_errors(step), ranks.one_error(), _no_dist_warning():
                dcp.save(
                    dict(tensors),
                    storage_writer=SafetensorsWriter(state, begin, finish),
                    planner=save_planner(),
                    process_group=self._group,
                    no_dist=ranks.alone,
                )
        finally:
            for left in working:  # on the coordinator, when no rank writes any more; a commit has renamed it
                if left.exists():
                    folders.remove(left)
        return self.folder / str(step)

    def candidates(self) -> list[CheckpointInfo]:
        """Every checkpoint in the folder, newest step first, as this process sees them."""
        return folders.list_checkpoints(self.folder)

    def latest(self) -> tuple[CheckpointInfo | None, list[CheckpointInfo]]:
        """Collective. The newest checkpoint whose files are all there, and the damaged newer ones passed over for it.

        Contents are not read: what only a digest can tell, :meth:`load` finds, and :meth:`load_latest` passes over.
        """
        found = Ranks(self._group).from_coordinator(self.candidates)
        passed_over: list[CheckpointInfo] = []
        for info in found:
            if info.complete:
                return info, passed_over
            passed_over.append(info)
        return None, passed_over

    def load(
        self,
        source: str | Path | CheckpointInfo,
        *,
        tensors: Mapping[str, torch.Tensor | Boxes],
        skip: Sequence[str] = (),
    ) -> dict[str, JSON]:
        """Collective. Fill ``tensors`` in place, whatever the layout that was saved, and return the JSON state.

        Files are compared with their SHA-256 on the way. After an error the tensors may be partly filled.

        Args:
            source: a checkpoint's own folder.
            tensors: name to tensor; together the ranks name all of the checkpoint except what ``skip`` matches.
            skip: shell patterns of names that may stay unread, e.g. ``("optimizer.*",)``.

        Raises:
            UserError: no such checkpoint, or names, shapes or dtypes differ; the first five differences are named.
            DamagedCheckpointError: a file is missing, cut short or altered.
        """
        path = source.path if isinstance(source, CheckpointInfo) else folders.local_folder(source)
        ranks = Ranks(self._group)
        contents: Contents = ranks.from_coordinator(lambda: read_contents(path))
        with ranks.one_error(), _no_dist_warning():
            dcp.load(
                dict(tensors),
                storage_reader=SafetensorsReader(contents),
                planner=StrictLoadPlanner(contents, skip),
                process_group=self._group,
                no_dist=ranks.alone,
            )
        return contents.state

    def load_latest(self, *, tensors: Mapping[str, torch.Tensor | Boxes], skip: Sequence[str] = ()) -> Resumed:
        """Collective. :meth:`load` the newest checkpoint that is good, passing over damaged ones.

        Raises:
            UserError: the newest good checkpoint does not fit ``tensors``.
        """
        passed_over: list[CheckpointInfo] = []
        for info in Ranks(self._group).from_coordinator(self.candidates):
            if info.complete:
                try:
                    return Resumed(info, self.load(info, tensors=tensors, skip=skip), passed_over)
                except DamagedCheckpointError as error:
                    info = replace(info, problem=error.problem)
            passed_over.append(info)
        return Resumed(None, {}, passed_over)

    def _complete(self, saved: Saved, step: int, config: JSON) -> None:
        """On the coordinator, when every rank's tensors are on the disk."""
        complete(saved, step, config)
        folders.commit(saved.folder, self.folder / str(step))
        if self._keep_last is not None:
            folders.prune(self.folder, step, self._keep_last)

    @contextmanager
    def _save_errors(self, step: int) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            good = next((str(info.path) for info in self.candidates() if info.complete), "none yet")
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
            raise SaveError(
                wrong=f"the checkpoint of step {step} could not be saved in {self.folder}: {error}{notes}",
                expected=f"a folder that every rank can write to, with room enough; {_free_space(self.folder)}",
                fix=f"make room or choose another folder; the last good checkpoint: {good}",
            ) from error


def complete(saved: Saved, step: int, config: JSON) -> None:
    """Write what makes a folder a checkpoint once its tensors are on the disk: their description, and the manifest.

    Raises:
        OSError: a file cannot be written, or one that should be there is not.
    """
    texts = {
        METADATA: Metadata(tensors=saved.tensors).model_dump_json().encode(),
        STATE: to_json(saved.state),
    }
    if config is not None:
        texts[CONFIG] = to_json(config)
    files = {**saved.files, **{name: write_file(saved.folder / name, [text]) for name, text in texts.items()}}
    manifest = Manifest(
        step=step, evocore=__version__, torch=str(torch.__version__), world_size=saved.world_size, files=files
    )
    if problems := missing_or_cut(saved.folder, manifest):
        raise OSError(errno.ENOENT, f"rank 0 does not find what other ranks wrote ({problems[0]})", str(saved.folder))
    write_file(saved.folder / MANIFEST, [manifest.model_dump_json(indent=1).encode()])


def _free_space(folder: Path) -> str:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return f"{shutil.disk_usage(there).free / 1e9:.2f} GB are free in {there}"


@contextmanager
def _no_dist_warning() -> Iterator[None]:
    """DCP warns that a process without ``torch.distributed`` works alone, which here is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
