"""Turns a measurement's JSON file into the tables that people read.

python ci/gpu/report.py docs/measurements/NAME.json [> NAME.md]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VERDICTS = {True: "met", False: "**missed**", None: "unknown"}
SUSPICIOUS = 0.02
"""Relative difference from the plain expression that bf16 rounding does not explain."""


def render(results: dict[str, Any]) -> str:
    """The report as Markdown."""
    parts = [_head(results)]
    if results.get("targets"):
        parts.append(_targets(results["targets"]))
    kernels = results.get("kernels") or {}
    if kernels.get("cases"):
        parts.append(_kernels(kernels))
    if results.get("training"):
        parts.append(_training(results["training"], kernels))
    if results.get("conformance"):
        parts.append(_conformance(results["conformance"]))
    parts.append(_steps(results["steps"]))
    return "\n\n".join(parts) + "\n"


def table(head: list[str], rows: Iterable[list[Any]]) -> str:
    """A Markdown table; None is an empty cell."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [
        ["" if cell is None else str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in lines
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _head(results: dict[str, Any]) -> str:
    environment = results["environment"]
    lines = [f"# {environment['device']}, {environment['date']}"]
    if results["dry_run"]:
        lines.append("**Dry run, no figures to quote**: tiny shapes on the CPU, to try the program.")
    rows = [[name, value] for name, value in environment.items() if value not in (None, "", {})]
    lines.append(table(["", ""], rows))
    return "\n\n".join(lines)


def _targets(targets: list[dict[str, Any]]) -> str:
    count = {verdict: sum(target["met"] is verdict for target in targets) for verdict in (True, False, None)}
    rows = [
        [
            target["name"],
            ("≤ " if target["at_most"] else "≥ ") + _in_unit(target["wanted"], target["unit"]),
            None if target["found"] is None else _in_unit(target["found"], target["unit"]),
            VERDICTS[target["met"]],
        ]
        for target in targets
    ]
    title = f"## Targets: {count[True]} met, {count[False]} missed, {count[None]} unknown"
    return title + "\n\n" + table(["what", "wanted", "found", ""], rows)


def _in_unit(value: float, unit: str) -> str:
    if unit.startswith("x "):
        return f"{value:.2f} {unit}"
    if unit == "of loss":
        return f"{value:.1e}"
    return f"{100 * value:.0f} % {unit}"


def _kernels(kernels: dict[str, Any]) -> str:
    parts = ["## Kernels", _yardsticks(kernels)]
    copy = max(entry["copy_bytes_per_second"] for entry in kernels["yardsticks"].values())
    product = max(entry["product_flops_per_second"] for entry in kernels["yardsticks"].values())
    for title, case in kernels["cases"].items():
        parts.append(f"### {title}")
        if "left_out" in case:
            parts.append(f"Left out: {case['left_out']}.")
            continue
        shapes = ", ".join(f"{name} {size}" for name, size in case["shapes"].items())
        parts.append(f"`{case['op']}` [{case['request']}]; {shapes}")
        parts.append(_case(case, copy, product))
        absent = {**case["missing"], **case["refused"], **_errors(case)}
        if absent:
            parts.append("\n".join(f"- {name}: {reason}" for name, reason in absent.items()))
    return "\n\n".join(parts)


def _yardsticks(kernels: dict[str, Any]) -> str:
    rows = [
        [
            when,
            f"{entry['copy_bytes_per_second'] / 1e9:.0f} GB/s",
            f"{entry['product_flops_per_second'] / 1e12:.1f} TFLOP/s",
        ]
        for when, entry in kernels["yardsticks"].items()
    ]
    return f"{kernels['dtype']}\n\n" + table(["yardstick", "copy (read + written)", "matrix product"], rows)


def _case(case: dict[str, Any], copy: float, product: float) -> str:
    measured = [row for row in case["rows"] if "seconds" in row]
    is_product = any(ideal["flops"] for ideal in case["ideal"].values())
    phases = list(dict.fromkeys(row["phase"] for row in measured))
    providers = list(dict.fromkeys(row["provider"] for row in measured))
    of = {(row["provider"], row["phase"]): row for row in measured}
    order = sorted(providers, key=lambda name: of[name, phases[-1]]["seconds"])
    rows = []
    for name in order:
        row: list[Any] = [f"**{name}**" if name == case["chosen"] else name]
        for phase in phases:
            entry = of[name, phase]
            rate = (
                f"{entry['flops_per_second'] / 1e12:.0f} TFLOP/s ({entry['flops_per_second'] / product:.0%})"
                if is_product
                else f"{entry['bytes_per_second'] / copy:.0%}"
            )
            row += [f"{entry['seconds'] * 1e3:.3f}", rate]
        last = of[name, phases[-1]]
        peak, difference = last.get("peak_bytes"), last.get("difference")
        row.append(None if peak is None else f"{peak / 2**20:.0f}")
        warning = " (!)" if difference is not None and difference > SUSPICIOUS else ""
        row.append(None if difference is None else f"{difference:.1e}{warning}")
        rows.append(row)
    of_what = "rate (of the product)" if is_product else "of the copy"
    head = ["provider", *(word for phase in phases for word in (f"{phase}, ms", of_what)), "peak, MiB", "from plain"]
    return table(head, rows)


def _errors(case: dict[str, Any]) -> dict[str, str]:
    return {row["provider"]: row["error"] for row in case["rows"] if "error" in row}


def _training(training: dict[str, Any], kernels: dict[str, Any]) -> str:
    parts = [f"## Training on one device ({training['backend']})"]
    product = max(
        (entry["product_flops_per_second"] for entry in kernels.get("yardsticks", {}).values()), default=None
    )
    rows = []
    for name in ("1.8B", "1.8B on references"):
        run = training.get(name, {"error": "not run"})
        if "error" in run:
            parts.append(f"- {name}: {run['error']}")
            continue
        rate = run["model_flops_per_second"]
        rows.append(
            [
                name,
                f"{run['micro_bsz']} x {run['seq_len']}",
                f"{run['step_seconds'] * 1e3:.0f}",
                f"{run['tokens_per_second']:.0f}",
                f"{rate / 1e12:.1f}",
                "unknown" if run["mfu"] is None else f"{run['mfu']:.1%}",
                None if product is None else f"{rate / product:.1%}",
                f"{run['peak_memory_bytes'] / 2**30:.1f}",
                f"{run['first_loss']:.4f} → {run['last_loss']:.4f} ({run['steps']} steps)",
            ]
        )
    head = ["run", "micro-batch", "step, ms", "tokens/s", "TFLOP/s", "MFU, datasheet", "MFU, measured product"]
    parts.append(table([*head, "peak, GiB", "loss"], rows))
    parts += [
        f"- {name}: {', '.join(training[name]['kernels'])}"
        for name in ("1.8B",)
        if "kernels" in training.get(name, {})
    ]
    small = training.get("small, device against CPU", {"error": "not run"})
    if "error" in small:
        parts.append(f"Small model against the CPU: {small['error']}")
    else:
        losses = small["losses"]
        parts.append(
            f"Small model in float32, {' against '.join(small['backends'])}, {len(losses)} steps: losses differ by "
            f"{small['largest_difference']:.1e} at most, gradient norms by "
            f"{small['largest_grad_norm_difference']:.1e} of their size; "
            f"loss {losses[0][0]:.4f} → {losses[-1][0]:.4f}."
        )
    return "\n\n".join(parts)


def _conformance(conformance: dict[str, Any]) -> str:
    rows, notes = [], []
    for op, result in conformance["ops"].items():
        if result["problem"]:
            notes.append(f"- {op}: {result['problem']}")
        for row in result["kernels"]:
            worst = f"{row['worst']:.2f}" if row["passed"] else None
            rows.append([op, row["provider"], row["dtype"], row["passed"], row["refused"], row["failed"], worst])
            notes += [
                f"- {op} {row['provider']} {row['dtype']} {failure['case']}: {failure['what']}"
                for failure in row["failures"][:2]
            ]
    title = f"## Conformance ({conformance['backend']})"
    head = ["op", "provider", "dtype", "passed", "refused", "failed", "error/allowed"]
    return "\n\n".join([title, table(head, rows), *(["\n".join(notes)] if notes else [])])


def _steps(steps: list[dict[str, Any]]) -> str:
    rows = []
    for step in steps:
        seen = step["readings"]
        time = f"{step['seconds']:.0f} s of {step['limit']:.0f}"
        rows.append([step["name"], time, step["outcome"], seen[len(seen) // 2] if seen else None])
    return "## Steps of this job\n\n" + table(["step", "time", "outcome", "half way"], rows)


if __name__ == "__main__":
    print(render(json.loads(Path(sys.argv[1]).read_text())), end="")
