"""Runs a command in which ``import torch_npu`` finds the device that is written in Python.

``python stage.py COMMAND...``: the processes that the command starts inherit everything through the environment.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent


def environment(folder: Path, *, package: str | None = None, site: Path | None = None) -> dict[str, str]:
    """The environment of a process with the stand-in.

    Args:
        folder: an empty one, for what says which version is installed.
        package: that version; the one that fits the running PyTorch if left out.
        site: where the module ``torch_npu`` is; the stand-in's if left out.
    """
    here = version("torch").split("+")[0]
    info = folder / f"torch_npu-{package or here}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch-npu\nVersion: {package or here}\n", "utf-8")
    paths = [folder, site or HERE / "site", HERE.parent]
    variables: Mapping[str, str] = os.environ
    rest = [variables["PYTHONPATH"]] if variables.get("PYTHONPATH") else []
    return {
        **variables,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), *rest]),
        "TORCH_NPU_FALLBACK_CPU_DISABLE": "1",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    command = parser.parse_args().command
    os.execvpe(command[0], command, environment(Path(tempfile.mkdtemp(prefix="python-npu-"))))
