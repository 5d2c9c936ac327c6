"""``evocore kernels``: what is offered, and what a config would run and why."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evocore.ops.kernel import Kernel
    from evocore.plugins.manager import PluginRegistry


def kernels(
    config: Annotated[Path | None, typer.Option(help="A config: show what its model would run.")] = None,
    sets: Annotated[list[str], typer.Option("--set", help="KEY=VALUE over the config; may be repeated.")] = [],  # noqa: B006
    backend: Annotated[str | None, typer.Option(help="The device; as for training if left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List kernels; with a config, which would be chosen and why the others would not."""
    from evocore.cli.output import print_json, tell_failed_plugins
    from evocore.errors import UserError
    from evocore.plugins.manager import load_plugins

    registry = load_plugins()
    if config is None:
        if sets:
            raise UserError(
                "--set without --config", "--set together with --config", "name the config whose values it changes"
            )
        offered = _offered(registry, backend)
        print_json(offered) if as_json else _show_offered(offered)
    else:
        planned = _planned(config, sets, backend, registry)
        print_json(planned) if as_json else _show_planned(planned)
    tell_failed_plugins(registry)


def _planned(config: Path, sets: list[str], flag: str | None, registry: PluginRegistry) -> dict[str, Any]:
    from evocore.config import load_config
    from evocore.parallel.layout import Layout
    from evocore.training.assembly import make_plan

    settings = load_config(config, sets).config
    plan = make_plan(settings, registry, layout=Layout.smallest(settings), backend=flag)
    return {
        "config": str(config),
        "backend": plan.backend.name,
        "device": plan.resolution.device,
        "digest": plan.resolution.digest(),
        "kernels": plan.resolution.table(),
    }


def _show_planned(facts: dict[str, Any]) -> None:
    from evocore.cli.output import print_table

    print(f"{facts['config']} on {facts['backend']}: digest {facts['digest']}")
    print_table(
        ["op", "request", "kernel", "priority", "rests on", "not chosen, and why"],
        [
            (
                row["op"],
                row["request"],
                row["provider"],
                row["priority"],
                row["evidence"],
                "\n".join(_why_not(row["rejected"], facts["device"])),
            )
            for row in facts["kernels"]
        ],
    )


def _why_not(rejected: list[dict[str, Any]], device: str) -> Iterable[str]:
    """The reasons of this device's kernels; those of other devices in a few words."""
    yield from (f"{other['provider']}: {other['reason']}" for other in rejected if device in other["devices"])
    elsewhere = sorted({name for other in rejected if device not in other["devices"] for name in other["devices"]})
    if elsewhere:
        yield f"(others are for {', '.join(elsewhere)})"


def _offered(registry: PluginRegistry, flag: str | None) -> list[dict[str, Any]]:
    from evocore.backend import choose_backend

    offers = registry.kernels()
    if flag is not None:
        backend, _ = choose_backend(registry.backends(), flag=flag)
        offers = [kernel for kernel in offers if backend.device_type in kernel.devices]
    return [
        _facts(kernel) for kernel in sorted(offers, key=lambda kernel: (kernel.op, -kernel.priority, kernel.provider))
    ]


def _facts(kernel: Kernel) -> dict[str, Any]:
    return {
        "op": kernel.op,
        "provider": kernel.provider,
        "devices": sorted(kernel.devices),
        "dtypes": sorted(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes),
        "requires": list(kernel.requires),
        "priority": kernel.priority,
        "evidence": kernel.evidence,
        "deterministic": kernel.deterministic,
        "target": kernel.target,
    }


def _show_offered(facts: list[dict[str, Any]]) -> None:
    from evocore.cli.output import print_table

    print_table(
        ["op", "kernel", "devices", "dtypes", "needs", "priority", "rests on"],
        [
            (
                row["op"],
                row["provider"] + ("" if row["deterministic"] else " (not deterministic)"),
                ", ".join(row["devices"]),
                ", ".join(row["dtypes"]),
                ", ".join(row["requires"]),
                row["priority"],
                row["evidence"],
            )
            for row in facts
        ],
    )
