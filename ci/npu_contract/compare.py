"""Compares two runs step by step: losses and gradient norms must agree to 1e-5.

    python compare.py RUN OTHER

RUN and OTHER are files that hold what ``evocore train`` printed, the folder of a run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

KEYS = ("loss", "grad_norm")
TOLERANCE = 1e-5


def steps(printed: Path) -> list[dict[str, Any]]:
    metrics = Path(printed.read_text(encoding="utf-8").strip()) / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]


def main(here: Path, there: Path) -> int:
    ours, theirs = steps(here), steps(there)
    if not ours or len(ours) != len(theirs):
        print(f"  {len(ours)} steps in {here.stem}, {len(theirs)} in {there.stem}")
        return 1
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        for key in KEYS:
            apart = abs(one[key] - other[key]) / abs(other[key])
            worst = max(worst, apart)
            if not apart <= TOLERANCE:  # so that NaN is apart too
                print(f"  step {one['step']}: {key} is {one[key]} in {here.stem}, {other[key]} in {there.stem}")
                return 1
    print(f"  {here.stem} and {there.stem}: {len(ours)} steps, losses and gradient norms within {worst:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
