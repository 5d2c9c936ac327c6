"""``evocore demo``: a whole run on text that every machine with Python has, and what came of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer


def demo(
    nproc: Annotated[int | None, typer.Option(min=1, help="Train on this many processes, under torchrun.")] = None,
    backend: Annotated[str | None, typer.Option(help="The device to train on (`evocore backends`).")] = None,
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the demo's config; may be repeated.")] = [],  # noqa: B006
) -> int:
    """Train a small model on the source of Python's standard library and let it write a function."""
    from evocore.backend import choose_backend
    from evocore.cli.output import print_table
    from evocore.cli.train import train_here
    from evocore.config import load_config
    from evocore.config.shipped import shipped_config
    from evocore.parallel.launch import LaunchEnvironment
    from evocore.plugins.manager import load_plugins

    start = time.perf_counter()
    path = shipped_config("demo")
    loaded = load_config(path, sets)
    if nproc is None:
        code, folder = train_here(loaded, LaunchEnvironment(), backend)
    else:
        choose_backend(
            load_plugins().backends(), flag=backend, config=loaded.config.backend
        )  # a mistake is told once
        code, folder = _under_torchrun(path, sets, backend, nproc)
    if code != 0:
        print("evocore demo: not finished; the same command goes on from the last checkpoint", file=sys.stderr)
        return code

    from evocore.observe.demo import report

    result = report(folder, load_plugins(), backend=backend)
    print_table(("", "demo"), [*result.rows, ("time", f"{time.perf_counter() - start:.0f} s")])
    print(f"\nWhat it wrote after {result.prompt!r}:\n\n{result.text}")
    return 0


def _under_torchrun(config: Path, sets: list[str], backend: str | None, nproc: int) -> tuple[int, Path]:
    """Train on several processes as on a cluster; torchrun's exit code and the folder that rank 0 printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    command += ["-m", "evocore", "train", "--config", str(config), "--launcher", "torch"]
    command += [word for text in sets for word in ("--set", text)]
    command += [] if backend is None else ["--backend", backend]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    return done.returncode, Path(done.stdout.strip())
