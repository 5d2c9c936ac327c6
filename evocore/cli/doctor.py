"""``evocore doctor``: what is installed here, and what is wrong with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evocore.observe.doctor import BackendStatus, Diagnosis
    from evocore.plugins.manager import PluginStatus


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Look for what is wrong with this installation."""
    from evocore.cli.output import print_json
    from evocore.observe.doctor import examine
    from evocore.plugins.manager import load_plugins

    diagnosis = examine(load_plugins())
    if as_json:
        print_json(dataclasses.asdict(diagnosis))
    else:
        _show(diagnosis)


def _show(diagnosis: Diagnosis) -> None:
    from evocore.cli.output import print_table

    print_table(["package", "version"], diagnosis.versions.items())
    print()
    print_table(
        ["plug-in", "from", "version", "module", "state"],
        [
            (plugin.name, plugin.distribution, plugin.version, plugin.target, plugin.problem or "loaded")
            for plugin in diagnosis.plugins
        ],
    )
    _show_tracebacks(diagnosis.plugins)
    print()
    print_table(
        ["backend", "device", "priority", "state", "versions"],
        [
            (
                status.name,
                status.device_type,
                status.priority,
                status.problem or ("available, chosen" if status.name == diagnosis.chosen else "available"),
                ", ".join(f"{name} {version}" for name, version in status.versions.items()),
            )
            for status in diagnosis.backends
        ],
    )
    _show_tracebacks(diagnosis.backends)
    print()
    print_table(["variable", "value"], diagnosis.environment.items())
    print()
    if not diagnosis.problems:
        print("nothing is wrong")
    for number, problem in enumerate(diagnosis.problems, 1):
        print(f"{number}. {problem.what}\n   {problem.advice}")


def _show_tracebacks(asked: Iterable[PluginStatus | BackendStatus]) -> None:
    for status in asked:
        if status.detail:
            print(f"\n{status.name}:\n" + "\n".join("    " + line for line in status.detail.splitlines()))
