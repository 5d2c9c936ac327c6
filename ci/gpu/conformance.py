"""Checks every op's kernels on a device against their contracts, several ops at a time, and writes one JSON file.

    python ci/gpu/conformance.py --out FILE --backend NAME [--seconds 150] [--tiny]

Each op is a process of its own, ``evocore conform --op OP --json``: a kernel that breaks the device or hangs takes no
other op down, and the host works out the float64 references of several at once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from evocore.ops.contracts import CONTRACTS

MOST_AT_ONCE = 6
TINY = ["--op", "rms_norm", "--provider", "triton", "--dtype", "float32", "--sizes", "small", "--draws", "1"]


def main() -> None:
    options = parse()
    cores = len(os.sched_getaffinity(0))
    workers = max(1, min(MOST_AT_ONCE, cores // 2))
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores // workers))}
    ops = ["rms_norm"] if options.tiny else sorted(CONTRACTS)
    deadline = time.monotonic() + options.seconds
    base = [sys.executable, "-m", "evocore", "conform", "--backend", options.backend, "--json"]
    commands = {op: base + (TINY if options.tiny else ["--op", op]) for op in ops}
    with ThreadPoolExecutor(workers) as pool:
        found = dict(zip(ops, pool.map(lambda op: check(commands[op], environment, deadline), ops), strict=True))
    options.out.write_text(json.dumps({"backend": options.backend, "ops": found}, indent=1) + "\n")
    bad = [op for op, result in found.items() if result["problem"] or any(row["failed"] for row in result["kernels"])]
    print(
        f"conformance: {len(ops) - len(bad)} of {len(ops)} ops conform" + (f"; not: {', '.join(bad)}" if bad else "")
    )
    sys.exit(1 if bad else 0)


def check(command: list[str], environment: dict[str, str], deadline: float) -> dict[str, Any]:
    """Check one op; ``problem`` is None if the command answered."""
    left = deadline - time.monotonic()
    if left <= 0:
        return {"problem": "not started: the time was used up", "kernels": []}
    start = time.monotonic()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return {"problem": f"stopped after {left:.0f} s", "kernels": []}
    seconds = round(time.monotonic() - start, 1)
    try:
        answer = json.loads(done.stdout)
    except json.JSONDecodeError:
        tail = done.stderr.strip().splitlines()[-8:]
        return {"problem": f"exit code {done.returncode}: " + " | ".join(tail), "kernels": [], "seconds": seconds}
    return {"problem": None, "verdict": answer["verdict"], "kernels": answer["kernels"], "seconds": seconds}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--backend", required=True, help="evocore's name of the device")
    parser.add_argument("--seconds", type=float, default=150.0, help="stop whatever is not done by then")
    parser.add_argument("--tiny", action="store_true", help="one op, one provider, few cases: to try the program")
    return parser.parse_args()


if __name__ == "__main__":
    main()
