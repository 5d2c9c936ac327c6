"""``evocore conform``: whether a backend keeps its contracts: kernels, device and collectives."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from evocore.backend import Backend
    from evocore.testing.conformance import Finding, Row

SHOWN = 5
"""Failures of a kernel in a dtype that the table for people tells; ``--json`` has all."""


def conform(
    backend: Annotated[str | None, typer.Option(help="The device; as for training if left out.")] = None,
    part: Annotated[
        str | None,
        typer.Option(
            help="kernels, device, collectives or all; all, or what another option belongs to, if left out."
        ),
    ] = None,
    op: Annotated[str | None, typer.Option(help="Only kernels of this op.")] = None,
    provider: Annotated[str | None, typer.Option(help="Only kernels of this provider.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Only kernels in this dtype, e.g. bfloat16.")] = None,
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
    check: Annotated[
        list[str] | None, typer.Option(help="Only this check of the device or of collectives; can be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="Not this check of the device or of collectives; can be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check a backend against its contracts: its kernels, its device and its collectives, or some of them.

    Kernels: outputs and gradients are compared with the float64 reference, over a grid of cases and over drawn ones.
    Collectives run in 2 and in 4 processes. The exit code is 1 if anything fails, or if nothing could be checked of
    what was asked for.
    """
    from evocore.backend import choose_backend
    from evocore.cli.output import print_json, tell_failed_plugins
    from evocore.plugins.manager import load_plugins
    from evocore.testing.conformance import Checker, Facilities, Selection, parts_of
    from evocore.testing.conformance import conform as survey
    from evocore.testing.conformance.selection import DRAWS

    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of kernels and what runs them: errors are what is judged

    registry = load_plugins()
    chosen, _ = choose_backend(registry.backends(), flag=backend)
    parts = parts_of(part, of_kernels=bool(op or provider or dtype or case), of_others=bool(check))
    facilities = Facilities(parts, tuple(check or ()), tuple(skip or ()))
    facilities.validate()
    rows: list[Row] = []
    if "kernels" in parts:
        selection = Selection(op, provider, dtype, case, sizes, DRAWS if draws is None else draws, seed, thorough)
        rows = survey(Checker(registry.kernels(), chosen), selection, _show_progress)
    findings = facilities.check(chosen, _show_progress)
    _show_progress("")
    tell_failed_plugins(registry)
    verdicts = _verdicts(rows if "kernels" in parts else None, findings)
    if as_json:
        print_json(_answer(chosen, verdicts, rows, findings))
    else:
        _show(rows, findings)
        print(f"\n{chosen.name}: {_verdict(verdicts)}")
    return 0 if _conforms(verdicts) else 1


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _verdicts(rows: Sequence[Row] | None, findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Of every kernel in every dtype and of every check, by the parts that were asked for."""
    verdicts = {} if rows is None else {"kernels": [row.verdict for row in rows]}
    for found in findings:
        verdicts.setdefault(found.part, []).append(found.verdict)
    return verdicts


def _conforms(verdicts: dict[str, list[str]]) -> bool:
    return all("passed" in of_part and "failed" not in of_part for of_part in verdicts.values())


def _verdict(verdicts: dict[str, list[str]]) -> str:
    """What becomes of the backend, and of each part, in one line."""
    unchecked = [part for part, of_part in verdicts.items() if not {"passed", "failed"} & set(of_part)]
    if any("failed" in of_part for of_part in verdicts.values()):
        whole = "does not conform"
    elif unchecked:
        whole = f"nothing was checked of {', '.join(unchecked)}"
    else:
        whole = "conforms"
    return "; ".join([whole, *(f"{part}: {_counted(of_part)}" for part, of_part in verdicts.items())])


WORDS = {
    "failed": ("fails", "fail"),
    "passed": ("conforms", "conform"),
    "serves nothing of the grid": ("serves nothing of the grid", "serve nothing of the grid"),
}
"""A verdict -> what is said of one, and of several; of others the verdict itself."""


def _counted(verdicts: Sequence[str]) -> str:
    """As ``1 fails, 3 conform``, the worst first."""
    counts = {verdict: verdicts.count(verdict) for verdict in (*WORDS, *verdicts)}
    told = [
        f"{count} {WORDS.get(verdict, (verdict, verdict))[count > 1]}" for verdict, count in counts.items() if count
    ]
    return ", ".join(told) or "none at all"


def _answer(
    backend: Backend, verdicts: dict[str, list[str]], rows: Sequence[Row], findings: Sequence[Finding]
) -> dict[str, Any]:
    return {
        "backend": backend.name,
        "conforms": _conforms(verdicts),
        "verdict": _verdict(verdicts),
        "kernels": [_facts(row) for row in rows],
        **{part: [_finding(f) for f in findings if f.part == part] for part in ("device", "collectives")},
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "check": found.check,
        "ranks": found.ranks,
        "verdict": found.verdict,
        "what": found.what or None,
        "reproducer": found.reproducer,
        "seconds": round(found.seconds, 3),
    }


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
        "shown": dict(row.shown),
        "refusals": dict(row.refusals),
        "failures": [
            {"case": failure.case or None, "what": failure.what, "reproducer": failure.reproducer}
            for failure in row.failures
        ],
    }


def _show(rows: Sequence[Row], findings: Sequence[Finding]) -> None:
    if rows:
        _show_kernels(rows)
    if any(row.passed for row in rows):
        print()
        _show_what_was_shown(rows)
    if rows and findings:
        print()
    if findings:
        _show_findings(findings)


def _show_kernels(rows: Sequence[Row]) -> None:
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


def _show_findings(findings: Sequence[Finding]) -> None:
    from evocore.cli.output import print_table

    print_table(
        ["part", "check", "ranks", "seconds", "verdict"],
        [
            (
                found.part,
                found.check,
                found.ranks if found.part == "collectives" else None,
                f"{found.seconds:.1f}",
                found.verdict + (f": {found.what}" if found.verdict in ("not claimed", "skipped") else ""),
            )
            for found in findings
        ],
    )
    for found in findings:
        if found.verdict == "failed":
            print(f"\n{found.part} {found.label}: {found.what}\n    {found.reproducer}")


def _show_what_was_shown(rows: Sequence[Row]) -> None:
    """How many cases have shown each feature of each kernel in each dtype."""
    from evocore.cli.output import print_table
    from evocore.testing.conformance.check import FEATURES

    print_table(
        ["op", "kernel", "dtype", *FEATURES],
        [
            (row.op, row.provider, row.dtype, *(row.shown[feature] or "-" for feature in FEATURES))
            for row in rows
            if row.passed
        ],
    )
