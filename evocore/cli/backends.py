"""``evocore backends``: the devices that plug-ins drive."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evocore.observe.doctor import BackendStatus


def backends(
    backend: Annotated[str | None, typer.Option(help="As for training: this one is wanted.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List devices, whether each can be used, and which would be."""
    from evocore.backend import choose_backend
    from evocore.cli.output import print_json, tell_failed_plugins
    from evocore.errors import UserError
    from evocore.observe.doctor import survey_backends
    from evocore.plugins.manager import load_plugins

    registry = load_plugins()
    offers = registry.backends()
    found = survey_backends(offers)
    mistake: UserError | None = None
    chosen, chosen_by = None, None
    try:
        best, chosen_by = choose_backend(offers, flag=backend)
        chosen = best.name
    except UserError as error:
        mistake = error  # told after the list, which helps to mend it
    tell_failed_plugins(registry)
    if as_json:
        facts = [dataclasses.asdict(status) for status in found]
        print_json({"chosen": chosen, "chosen_by": chosen_by, "backends": facts})
    else:
        _show(found, chosen, chosen_by)
    if mistake is not None:
        raise mistake


def _show(found: list[BackendStatus], chosen: str | None, chosen_by: str | None) -> None:
    from evocore.cli.output import print_table

    print_table(
        ["backend", "device", "priority", "state", "devices", "versions"],
        [
            (
                status.name + (f"  <- chosen ({chosen_by})" if status.name == chosen else ""),
                status.device_type,
                status.priority,
                status.problem or "available",
                "\n".join(status.devices),
                ", ".join(f"{name} {version}" for name, version in status.versions.items()),
            )
            for status in found
        ],
    )
