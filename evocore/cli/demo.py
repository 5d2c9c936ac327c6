"""``evocore demo``: a whole run in a minute, on whatever machine this is."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    nproc: Annotated[int | None, typer.Option(min=1, help="Train on this many processes.")] = None,
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the demo's config; may be repeated.")] = [],  # noqa: B006
) -> int:
    """Train a small model on this machine and show what a run leaves behind."""
    from evocore.training.demo import run

    return run(nproc=nproc, sets=sets)
