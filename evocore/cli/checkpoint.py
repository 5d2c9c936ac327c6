"""``evocore checkpoint``: what a folder of checkpoints holds, whether one is whole, and how two differ.

Exit codes beside the common ones: ``verify`` ends with 2 for a damaged checkpoint, ``diff`` with 3 for two that
differ (1 stays a fault of ours, so a script can tell a difference from a crash).
"""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer

from evocore.checkpoint.contents import verify as find_problems
from evocore.checkpoint.folder import CheckpointInfo, list_checkpoints, local_folder
from evocore.checkpoint.manifest import read_manifest
from evocore.errors import UserError

DAMAGED, DIFFERENT = 2, 3

app = typer.Typer(help="List, verify and compare checkpoints.", no_args_is_help=True)

Json = Annotated[bool, typer.Option("--json", help="Print the same facts as JSON.")]


@app.command()
def ls(
    folder: Annotated[str, typer.Argument(help="Folder with a run's checkpoints, PATH or local:PATH.")],
    as_json: Json = False,
) -> None:
    """List the checkpoints in FOLDER, newest first, with what is wrong with damaged ones (files and sizes only)."""
    path = local_folder(folder)
    if not path.is_dir():
        raise UserError(
            wrong=f"there is no folder {path}",
            expected="a folder that holds <step>/ folders, e.g. runs/JOB/TIME/checkpoints",
            fix="check the path",
        )
    found = list_checkpoints(path)
    if as_json:
        typer.echo(json.dumps([_facts(info) for info in found], indent=1))
    elif not found:
        typer.echo(f"no checkpoints in {path}")
    else:
        typer.echo(f"{'step':>10}  {'size':>12}  {'ranks':>5}  {'created (UTC)':<19}  state")
        for info in found:
            typer.echo(_line(info))


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(help="One checkpoint: a <step>/ folder.")],
    quick: Annotated[bool, typer.Option("--quick", help="Compare files and sizes only, not digests.")] = False,
    as_json: Json = False,
) -> None:
    """Read a checkpoint whole and compare every file with its manifest; exit code 2 if it is damaged."""
    path = local_folder(checkpoint)
    problems = find_problems(path, hashes=not quick)
    if as_json:
        typer.echo(json.dumps({"path": str(path), "complete": not problems, "problems": problems}, indent=1))
    elif problems:
        typer.echo("\n".join([f"{path} is damaged:", *(f"  {problem}" for problem in problems)]))
    else:
        manifest = read_manifest(path)
        what = "files and sizes" if quick else "every SHA-256"
        typer.echo(f"{path} is complete: step {manifest.step}, {manifest.bytes / 1e6:,.1f} MB; {what} as written")
    if problems:
        raise typer.Exit(DAMAGED)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help="One checkpoint: a <step>/ folder.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Compare the tensors and state of two checkpoints, whatever their layouts; exit code 3 if they differ."""
    from evocore.checkpoint.compare import compare

    found = compare(local_folder(a), local_folder(b))
    if as_json:
        tensors = [
            {"name": d.name, "kind": d.kind, "detail": d.detail, "max_abs": _json_number(d.max_abs)}
            for d in found.tensors
        ]
        facts = {"same": found.same, "equal_tensors": found.equal, "tensors": tensors, "state": found.state}
        typer.echo(json.dumps(facts, indent=1))
    else:
        for d in found.tensors:
            gap = "" if d.max_abs is None else f"  max abs difference {d.max_abs:.6g}"
            typer.echo(f"{d.kind:<9}  {d.name}  {d.detail}{gap}")
        for key in found.state:
            typer.echo(f"state      {key}")
        differ = f"{len(found.tensors)} tensors and {len(found.state)} state keys differ"
        typer.echo(f"{found.equal} tensors are equal bit for bit; {differ}")
    if not found.same:
        raise typer.Exit(DIFFERENT)


def _line(info: CheckpointInfo) -> str:
    size, ranks, created = "?", "?", "?"
    if info.manifest:
        size, ranks = f"{info.manifest.bytes / 1e6:,.1f} MB", str(info.manifest.world_size)
        created = info.manifest.created[:19]
    state = "complete" if info.complete else f"damaged: {info.problem}"
    return f"{info.step:>10}  {size:>12}  {ranks:>5}  {created:<19}  {state}"


def _facts(info: CheckpointInfo) -> dict[str, object]:
    manifest = info.manifest
    return {
        "step": info.step,
        "path": str(info.path),
        "complete": info.complete,
        "problem": info.problem,
        "bytes": manifest.bytes if manifest else None,
        "world_size": manifest.world_size if manifest else None,
        "created": manifest.created if manifest else None,
    }


def _json_number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return str(value) if value is not None and not math.isfinite(value) else value
