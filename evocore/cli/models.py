"""``evocore models``: what ``model_type`` in a config can name."""

from __future__ import annotations

from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the model families that a config can name."""
    from evocore.cli.output import print_json, print_table, tell_failed_plugins
    from evocore.plugins.manager import load_plugins

    registry = load_plugins()
    families = sorted(registry.models(), key=lambda family: family.name)
    tell_failed_plugins(registry)
    if as_json:
        print_json(
            [
                {"name": family.name, "aliases": list(family.aliases), "description": family.description}
                for family in families
            ]
        )
        return
    print_table(
        ["model_type", "also", "what it is"],
        [(family.name, ", ".join(family.aliases), family.description) for family in families],
    )
