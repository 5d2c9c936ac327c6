"""``evocore conform``: whether the kernels that are offered for a device keep their contracts."""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evocore.testing.conformance import Row

SHOWN = 5
"""Failures of a kernel in a dtype that the table for people tells; ``--json`` has all."""


def conform(
    backend: Annotated[str | None, typer.Option(help="The device; as for training if left out.")] = None,
    op: Annotated[str | None, typer.Option(help="Only kernels of this op.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only kernels of this provider.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Only in this dtype, e.g. bfloat16.")] = None,
    case: Annotated[str | None, typer.Option(help="Only this case of the op, by the label that was printed.")] = None,
    sizes: Annotated[
        str | None, typer.Option(help="The largest cases: small, medium or large; small on the host if left out.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option(help="Cases drawn at random for each op, besides the declared ones; 5 if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Every property in every case and dtype, as on devices.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check kernels against their contracts: all that are offered for a device, or some.

    Outputs and gradients are compared with the float64 reference, over a grid of cases and over drawn ones. The exit
    code is 1 if a case fails, or if nothing could be checked.
    """
    from evocore.backend import choose_backend
    from evocore.cli.output import print_json, tell_failed_plugins
    from evocore.plugins.manager import load_plugins
    from evocore.testing.conformance import Checker, Selection
    from evocore.testing.conformance import conform as survey
    from evocore.testing.conformance.selection import DRAWS

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of kernels and what runs them: errors are what is judged

    registry = load_plugins()
    chosen, _ = choose_backend(registry.backends(), flag=backend)
    selection = Selection(op, provider, dtype, case, sizes, DRAWS if draws is None else draws, seed, thorough)
    rows = survey(Checker(registry.kernels(), chosen), selection, _show_progress)
    _show_progress("")
    tell_failed_plugins(registry)
    if as_json:
        print_json({"backend": chosen.name, "verdict": _verdict(rows), "kernels": [_facts(row) for row in rows]})
    else:
        _show(rows, chosen.name)
    return 0 if any(row.passed for row in rows) and not any(row.failures for row in rows) else 1


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _verdict(rows: list[Row]) -> str:
    failed = sum(bool(row.failures) for row in rows)
    if failed:
        return f"{failed} of {len(rows)} fail"
    served = sum(bool(row.passed) for row in rows)
    if not served:
        return "nothing was checked"
    return f"{served} conform" + (f", {len(rows) - served} serve nothing of the grid" if served < len(rows) else "")


def _facts(row: Row) -> dict[str, Any]:
    return {
        "op": row.op,
        "provider": row.provider,
        "dtype": row.dtype or None,
        "deterministic": row.deterministic,
        "verdict": row.verdict,
        "passed": row.passed,
        "refused": row.refused,
        "failed": len(row.failures),
        "worst": row.worst,
        "seconds": round(row.seconds, 3),
        "refusals": dict(row.refusals),
        "failures": [
            {"case": failure.case or None, "what": failure.what, "reproducer": failure.reproducer}
            for failure in row.failures
        ],
    }


def _show(rows: list[Row], backend: str) -> None:
    from evocore.cli.output import print_table

    print_table(
        ["op", "kernel", "dtype", "passed", "refused", "failed", "error/allowed", "seconds", "verdict"],
        [
            (
                row.op,
                row.provider + ("" if row.deterministic else " (not deterministic)"),
                row.dtype,
                row.passed,
                row.refused,
                len(row.failures),
                f"{row.worst:.2f}" if row.passed else None,
                f"{row.seconds:.1f}",
                "\n".join([row.verdict, *(f"refused {count}: {reason}" for reason, count in row.refusals.items())]),
            )
            for row in rows
        ],
    )
    for row in rows:
        for failure in row.failures[:SHOWN]:
            print(f"\n{row.op} {row.provider} {row.dtype} {failure.case}: {failure.what}\n    {failure.reproducer}")
        if len(row.failures) > SHOWN:
            print(f"\n{row.op} {row.provider} {row.dtype}: {len(row.failures) - SHOWN} more (--json tells all)")
    print(f"\n{backend}: {_verdict(rows)}")
