"""``evocore models``: what ``model_type`` in a config and ``--model`` can name, and how large released models are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer


def models(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List the model families that a config can name, and the released models of each with their parameters."""
    from evocore.cli.output import print_json, print_table, tell_failed_plugins
    from evocore.plugins.manager import load_plugins
    from evocore.released import Catalogue, count_parameters

    registry = load_plugins()
    families = sorted(registry.models(), key=lambda family: family.name)
    catalogue = Catalogue.of(registry)
    counts = {one.name: (one.family.name, count_parameters(one)) for one in catalogue.models}
    tell_failed_plugins(registry)
    for name, reason in catalogue.failed.items():
        print(f"evocore: no sizes of {name}: {reason}", file=sys.stderr)
    if as_json:
        print_json(
            [
                {
                    "name": family.name,
                    "aliases": list(family.aliases),
                    "description": family.description,
                    "sizes": [
                        {"name": name, "parameters": count.total, "active": count.active}
                        for name, (owner, count) in counts.items()
                        if owner == family.name
                    ],
                }
                for family in families
            ]
        )
        return
    print_table(
        ["model_type", "also", "what it is"],
        [(family.name, ", ".join(family.aliases), family.description) for family in families],
    )
    print()
    print_table(
        ["--model", "model_type", "parameters", "of a token"],
        [
            (name, owner, f"{count.total:,}", "all" if count.active == count.total else f"{count.active:,}")
            for name, (owner, count) in counts.items()
        ],
    )
