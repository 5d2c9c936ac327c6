"""Everything a device can tell in one call: conformance, kernel benchmarks, training; ``ci/gpu/run.sh`` starts it.

Each step is a process with a time limit of its own, and what becomes of it is recorded and never stops the others.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import render
from targets import evaluate

from evocore.backend import Backend, probe
from evocore.plugins.manager import load_plugins

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = ("conformance", "kernels", "training")
WHOLE = 520.0
"""Seconds for all steps together."""
EVERY = 10.0
"""Seconds between readings of clocks and power."""


@dataclass(frozen=True)
class Limits:
    """Seconds: ``soft`` is what a step is told to keep to, ``hard`` when it is ended."""

    soft: float
    hard: float


LIMITS = {"conformance": Limits(140, 150), "kernels": Limits(180, 225), "training": Limits(160, 170)}
DRY_LIMITS = {"conformance": Limits(50, 60), "kernels": Limits(40, 60), "training": Limits(55, 60)}
SCRIPTS = {"conformance": "conformance.py", "kernels": "bench_kernels.py", "training": "bench_training.py"}


def main() -> int:
    options = parse()
    backend = find_backend(options.dry_run)
    if backend is None:
        return 2
    out = Path(tempfile.mkdtemp(prefix="evocore-dry-run-")) if options.dry_run and not options.out else options.out
    out = (out or ROOT / "docs" / "measurements").resolve()
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    results: dict[str, Any] = {
        "dry_run": options.dry_run,
        "environment": environment(backend, options.commit),
        "steps": [],
    }
    base = out / slug(results["environment"])
    with tempfile.TemporaryDirectory() as work:
        for name in STEPS:
            if name in options.only:
                step(name, backend, options.dry_run, WHOLE - (time.monotonic() - start), Path(work), results)
                results["targets"] = evaluate(results)
                write(base, results)
    print(f"{base}.md")
    return 0 if all(entry["outcome"] == "done" for entry in results["steps"]) else 1


def write(base: Path, results: dict[str, Any]) -> None:
    """Both files, anew after each step: a job that is ended leaves what it has."""
    base.with_name(base.name + ".json").write_text(json.dumps(results, indent=1) + "\n")
    base.with_name(base.name + ".md").write_text(render(results))


def find_backend(dry_run: bool) -> Backend | None:
    """The available backend of highest priority that is no CPU; in a dry run the CPU. Tells if there is none."""
    probes = [probe(offer) for offer in load_plugins().backends()]
    usable = [entry.backend for entry in probes if entry.backend is not None and entry.problem is None]
    mine = [backend for backend in usable if (backend.device_type == "cpu") is dry_run]
    if mine:
        return max(mine, key=lambda backend: (backend.priority, backend.name))
    told = "; ".join(f"{entry.name}: {entry.problem or 'available'}" for entry in probes)
    print(
        f"ci/gpu/run.sh: no accelerator can be used here ({told})\n"
        "  expected: a machine with one, and PyTorch and evocore's plug-in for it\n"
        "  to mend it: run it there, or try the job on the CPU with ci/gpu/run.sh --dry-run",
        file=sys.stderr,
    )
    return None


def step(name: str, backend: Backend, dry_run: bool, left: float, work: Path, results: dict[str, Any]) -> None:
    """Run one step, take over its file and note how it went."""
    limits = (DRY_LIMITS if dry_run else LIMITS)[name]
    hard = min(limits.hard, left)
    soft = min(limits.soft, hard - (limits.hard - limits.soft))
    entry: dict[str, Any] = {"name": name, "limit": hard, "seconds": 0.0, "readings": []}
    entry["outcome"] = "not started: the job's time was used up"
    results["steps"].append(entry)
    if soft <= 0:
        return
    file = work / f"{name}.json"
    command = [sys.executable, str(HERE / SCRIPTS[name]), "--out", str(file), "--seconds", str(soft)]
    command += ["--device", backend.device_type] if name == "kernels" else ["--backend", backend.name]
    if dry_run:
        command += ["--tiny"] + (["--case-seconds", "0.02"] if name == "kernels" else [])
    variables = dict(os.environ)
    variables.pop("TRITON_INTERPRET", None)  # what is interpreted is not worth timing
    if dry_run and name == "conformance":
        variables["TRITON_INTERPRET"] = "1"
    start = time.monotonic()
    # A session of its own, so that what the step started is ended with it.
    process = subprocess.Popen(command, env=variables, cwd=ROOT, start_new_session=True, stdout=sys.stderr)
    try:
        entry["outcome"] = wait(process, start + hard, entry["readings"])
    finally:
        end(process)
    entry["seconds"] = round(time.monotonic() - start, 1)
    if file.is_file():
        results[name] = json.loads(file.read_text())


def wait(process: subprocess.Popen[bytes], deadline: float, seen: list[str]) -> str:
    """Wait for a step to end and say how it did; meanwhile add what the vendor's tool reads to ``seen``."""
    while (left := deadline - time.monotonic()) > 0:
        try:
            code = process.wait(min(EVERY, left))
        except subprocess.TimeoutExpired:
            reading = readings()
            seen += [reading] if reading else []
        else:
            return "done" if code == 0 else f"failed with exit code {code}"
    return "stopped at its limit"


def end(process: subprocess.Popen[bytes]) -> None:
    """End a step and everything it started; harmless if it is over."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended by themselves
    process.wait()


def environment(backend: Backend, commit: str | None) -> dict[str, Any]:
    """What a reader needs to compare two measurements."""
    return {
        "device": backend.device_name(backend.device()),
        "backend": backend.name,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit or git_commit(),
        "torch": torch.__version__,
        "triton": package("triton"),
        "liger-kernel": package("liger-kernel"),
        "python": sys.version.split()[0],
        **backend.versions(),
        "before": readings(),
    }


def package(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the working tree, and whether it has changes; None where there is no repository."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return None
    changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return head.stdout.strip() + (" with changes" if changes else "")


def readings() -> str | None:
    """Clocks, power, temperature and memory as the vendor's tool reads them, where there is one."""
    fields = [
        "clocks.sm",
        "clocks.max.sm",
        "clocks.mem",
        "power.draw",
        "temperature.gpu",
        "memory.used",
        "memory.total",
    ]
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader", "--id=0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer"
    if answer.returncode != 0:
        return f"nvidia-smi: {(answer.stdout + answer.stderr).strip()}"
    values = answer.stdout.strip().split(", ")
    return ", ".join(f"{name} {value}" for name, value in zip(fields, values, strict=False))


def slug(environment: dict[str, Any]) -> str:
    """The files' name: device and date, in letters, digits and dashes."""
    device = re.sub(r"[^a-z0-9]+", "-", str(environment["device"]).lower()).strip("-")
    return f"{device}-{environment['date']}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/gpu/run.sh", description=__doc__)
    parser.add_argument("--out", type=Path, help="folder of the two files; docs/measurements, or a new one (dry run)")
    parser.add_argument("--dry-run", action="store_true", help="all steps with tiny shapes on the CPU")
    parser.add_argument("--only", type=steps_named, default=list(STEPS), help=f"steps, of {','.join(STEPS)}")
    parser.add_argument("--commit", help="the commit, where the tree has no .git")
    parser.add_argument("--wheels", help="folder of wheels to install first; .whl if it is there (run.sh reads it)")
    return parser.parse_args()


def steps_named(text: str) -> list[str]:
    names = text.split(",")
    unknown = sorted(set(names) - set(STEPS))
    if unknown:
        raise argparse.ArgumentTypeError(f"no such step: {', '.join(unknown)}; there are {', '.join(STEPS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
