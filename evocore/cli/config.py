"""``evocore config show``: the resolved config, where each value is from, and what keeps it from running."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.callback()
def _group() -> None:
    """Keeps ``show`` a verb of its own, although it is the only one."""


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A config, e.g. configs/demo.py.")],
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the config; may be repeated.")] = [],  # noqa: B006
    world_size: Annotated[int, typer.Option(min=1, help="Ranks that the config is checked for.")] = 1,
    describe: Annotated[bool, typer.Option("--describe", help="Add what each key means.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print every value of a config with its source, and what keeps the config from running."""
    from evocore.cli.output import print_json
    from evocore.config import check, load_config, report_facts, report_text

    loaded = load_config(file, sets)
    problems = check(loaded.config, world_size=world_size, families=known_families())
    facts = report_facts(loaded, problems, world_size)
    print_json(facts) if as_json else print(report_text(facts, describe))


def known_families() -> set[str]:
    """Names and aliases of the model families that plug-ins offer."""
    from evocore.cli.output import tell_failed_plugins
    from evocore.plugins.manager import load_plugins

    registry = load_plugins()
    tell_failed_plugins(registry)
    return {name for family in registry.models() for name in (family.name, *family.aliases)}
