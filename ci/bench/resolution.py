"""What it costs to choose the kernels of a whole model, and whether two processes choose the same.

    python ci/bench/resolution.py [--configs configs/7B_internlm2.py ...] [--json]

Timed, from what the layers ask for to the function that each of them holds: collecting what every plug-in offers,
resolving, and binding. The model is built on the meta device. The first time imports the chosen kernels' modules; the
median of the later ones is choice alone. The target is 50 ms, and one digest in all processes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from evocore.config import load_config
from evocore.nn.binding import bind_kernels, model_requests
from evocore.ops.resolution import resolve
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan

TARGET_MS = 50.0
ROUNDS = 21
CONFIGS = ["configs/demo.py", "configs/1.8B_internlm2.py", "configs/7B_internlm2.py", "configs/7B_llama2.py"]


def measure(config: str) -> dict[str, Any]:
    """Milliseconds for the model of one config, and the digest of its table."""
    registry = load_plugins()
    plan = make_plan(load_config(Path(config), []).config, registry)
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        requests = model_requests(plan.model)
        resolution = resolve(requests, registry.kernels(), plan.backend.device_type)
        bind_kernels(plan.model, resolution)
        times.append((time.perf_counter() - start) * 1e3)
    return {
        "config": config,
        "backend": plan.backend.name,
        "requests": len(requests),
        "first_ms": times[0],
        "median_ms": statistics.median(times[1:]),
        "digest": plan.resolution.digest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=[config for config in CONFIGS if Path(config).exists()])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [measure(config) for config in options.configs]
    again = [sys.executable, __file__, "--json", "--configs", *options.configs]
    if not options.json:
        second = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
        print(f"{'config':<28}{'backend':<8}{'requests':>9}{'first ms':>10}{'median ms':>11}   digest")
        for row, other in zip(rows, second["configs"], strict=True):
            same = (
                "the same in another process" if row["digest"] == other["digest"] else f"BUT THEN {other['digest']}"
            )
            print(
                f"{row['config']:<28}{row['backend']:<8}{row['requests']:>9}{row['first_ms']:>10.1f}"
                f"{row['median_ms']:>11.1f}   {row['digest']}, {same}"
            )
    else:
        print(json.dumps({"target_ms": TARGET_MS, "configs": rows}, indent=1))


if __name__ == "__main__":
    main()
