"""``evocore diff``: where two runs part, on whatever devices and kernels they were made.

Exit codes beside the common ones: 1 if the runs part.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evocore.observe.run_diff import Comparison

PARTED = 1
SHOWN = 5
"""Partings, and calls that only one run made, that people are shown; ``--json`` has all."""
SHOWN_FACTS = 20
"""Differences of config, kernels and environment that people are shown."""


def diff(
    run_a: Annotated[Path, typer.Argument(help="Folder of a run that recorded fingerprints (kernels_check).")],
    run_b: Annotated[Path, typer.Argument(help="Folder of another one.")],
    tolerance: Annotated[
        float | None, typer.Option(min=0.0, help="Relative difference to allow; by the runs' dtype if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Name the first op, layer, direction and step at which two runs part; exit code 1 if they do.

    The tolerance is a few units in the last place of the coarser dtype (256 of float32, 8 of bfloat16, 16 of
    float16): meant for step 1, where both runs hold the same weights. Differences that rounding leaves in the weights
    grow from step to step.
    """
    from evocore.cli.output import print_json
    from evocore.observe.run_diff import compare_runs
    from evocore.observe.run_facts import different_facts, read_run, require_common_steps

    a, b = read_run(run_a), read_run(run_b)
    require_common_steps(a, b)
    found, differ = compare_runs(a, b, tolerance), different_facts(a, b)
    if as_json:
        print_json(_facts(found, differ))
    else:
        _show(found, differ)
    return 0 if found.agree else PARTED


def _facts(found: Comparison, differ: list[tuple[str, Any, Any]]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "agree": found.agree,
        "tolerance": found.tolerance,
        "tolerance_from": found.because,
        "steps": found.steps,
        "compared": found.calls,
        "different_data": None if found.data is None else dict(zip(("step", "micro_batch"), found.data, strict=True)),
        "partings": [_plain(asdict(parting)) for parting in found.partings],
        "alone": found.alone,
        "figures": [
            _plain(dict(zip(("step", "name", "a", "b", "difference"), row, strict=True))) for row in found.figures
        ],
        "differences": [{"name": name, "a": x, "b": y} for name, x, y in differ],
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity."""
    return {name: "inf" if value == float("inf") else value for name, value in row.items()}


def _show(found: Comparison, differ: list[tuple[str, Any, Any]]) -> None:
    from evocore.cli.output import print_table

    steps = ", ".join(map(str, found.steps[:10])) + (", ..." if len(found.steps) > 10 else "")
    print(f"{found.calls} results compared at steps {steps}; tolerance {found.tolerance:.3g} ({found.because})")
    if found.data is not None:
        step, micro_batch = found.data
        print(f"\nthe runs read different data from step {step}, micro-batch {micro_batch} on: compared up to there")
    if found.partings:
        print(f"\nthe runs part, first at {found.partings[0]}")
        for parting in found.partings[1:SHOWN]:
            print(f"  then at {parting}")
        if len(found.partings) > SHOWN:
            print(f"  and {len(found.partings) - SHOWN} more (--json tells all)")
    if found.alone:
        print(f"\n{len(found.alone)} results are in one run only:")
        print("\n".join(f"  {line}" for line in found.alone[:SHOWN]))
    if found.parted_figures:
        print("\nlosses and gradient norms beyond the tolerance:")
        print_table(
            ["step", "figure", "A", "B", "difference"],
            [(step, name, x, y, f"{gap:.3g}") for step, name, x, y, gap in found.parted_figures[:SHOWN]],
        )
    elif found.figures:
        print(f"\nlosses and gradient norms agree: largest difference {max(row[-1] for row in found.figures):.3g}")
    if differ:
        print(f"\n{len(differ)} settings, kernels and circumstances differ:")
        print_table(["", "A", "B"], differ[:SHOWN_FACTS])
    if found.agree:
        print("\nthe runs agree")
