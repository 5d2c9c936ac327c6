"""``evocore demo``: a whole run on text that every machine with Python has, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def demo(
    nproc: Annotated[int | None, typer.Option(min=1, help="Train on this many processes.")] = None,
    backend: Annotated[str | None, typer.Option(help="The device to train on (`evocore backends`).")] = None,
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the demo's config; may be repeated.")] = [],  # noqa: B006
) -> int:
    """Train a small model on the source of Python's standard library and let it write a function."""
    import time

    from evocore.cli.output import print_table
    from evocore.cli.train import train
    from evocore.config import load_config
    from evocore.config.shipped import shipped_config

    start = time.perf_counter()
    path = shipped_config("demo")
    config = load_config(path, sets).config
    code = train(config=path, sets=sets, backend=backend, nproc=nproc, announce=False)
    if code != 0:
        if code == 75:
            print("evocore demo: stopped and saved; the same command goes on", file=sys.stderr)
        return code

    from evocore.observe.demo import report
    from evocore.plugins.manager import load_plugins

    newest = max((Path(config.run_folder) / config.JOB_NAME).iterdir())
    result = report(newest, load_plugins(), backend=backend)
    rows = [*result.rows, ("time", f"{time.perf_counter() - start:.0f} s")]
    print_table(("", "demo"), rows)
    print(f"\nWhat it wrote after {result.prompt!r}:\n\n{result.text}")
    return 0
