"""The folder of a run: where it is, and whether an unfinished one should be continued."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

STATUS = "status.json"


class RunFolder:
    """``runs/<JOB_NAME>/<time>/``: config, environment, kernels, metrics, logs and checkpoints of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    def write(self, name: str, content: Any) -> None:
        """Write a JSON file of the run, all at once: a run that is killed leaves the old one or the new one."""
        prepared = self.path / f".{name}.partial"
        prepared.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(prepared, self.path / name)

    def set_status(self, state: str, step: int) -> None:
        """Record how the run stands: running, stopped or finished, and after which step."""
        self.write(STATUS, {"state": state, "step": step})

    def is_unfinished(self) -> bool:
        """Whether the run ended before its last step; a crash leaves it "running"."""
        try:
            return bool(json.loads((self.path / STATUS).read_text())["state"] != "finished")
        except FileNotFoundError:
            return False


def unfinished(root: Path, job: str) -> RunFolder | None:
    """The newest run of a job if it is unfinished and has a checkpoint to go on from."""
    folders = sorted(path for path in (root / job).glob("*") if path.is_dir()) if (root / job).is_dir() else []
    if not folders:
        return None
    newest = RunFolder(folders[-1])
    has_checkpoint = newest.checkpoints.is_dir() and any(newest.checkpoints.iterdir())
    return newest if newest.is_unfinished() and has_checkpoint else None


def new_folder(root: Path, job: str) -> RunFolder:
    """A fresh folder named by the time; a second run within the same second waits for the next."""
    while True:
        path = root / job / time.strftime("%Y-%m-%d_%H-%M-%S")
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            time.sleep(0.2)
        else:
            return RunFolder(path)


def environment(world_size: int, device_name: str, backend: str) -> dict[str, Any]:
    """What a reader needs to tell two runs apart: versions, device, world."""
    interesting = {"evocore", "torch", "numpy", "pluggy", "pydantic", "sentencepiece", "safetensors"}
    versions = {
        item.metadata["Name"]: item.version for item in distributions() if item.metadata["Name"] in interesting
    }
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "versions": dict(sorted(versions.items())),
        "backend": backend,
        "device": device_name,
        "world_size": world_size,
        "command": sys.argv,
    }
