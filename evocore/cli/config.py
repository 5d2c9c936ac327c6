"""``evocore config show``: the resolved config, where each value is from, and what keeps it from running."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evocore.config import check, facts, load_config, text

app = typer.Typer(help="Look at configs.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look at configs."""


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="Config file, e.g. configs/demo.py.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same facts for programs.")] = False,
    world_size: Annotated[int, typer.Option(min=1, help="Ranks that the config is checked for.")] = 1,
    describe: Annotated[bool, typer.Option("--describe", help="Add what each key means.")] = False,
) -> None:
    """Print every value with its source, the notes of loading, and what keeps the config from running."""
    loaded = load_config(file, sets or ())
    problems = check(loaded.config, world_size=world_size, families=known_families())
    found = facts(loaded, problems, world_size)
    typer.echo(json.dumps(found, indent=1) if as_json else text(found, describe))


def known_families() -> set[str]:
    """Names and aliases of the model families that plug-ins offer."""
    from evocore.plugins.manager import load_plugins  # plug-ins may be slow to import; --help must not wait for them

    offers = load_plugins().hook.evocore_models()
    return {name for batch in offers for family in batch for name in (family.name, *family.aliases)}
