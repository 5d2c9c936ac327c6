"""Kills ranks of one elastic run, again and again, and counts the restarts that come up at the first attempt.

    python ci/elastic.py [--kills 20] [--seed 0]

One torchrun trains ``ci/launch/tiny.py`` on two ranks with as many ``--max-restarts`` as there are kills, so that a
restart that fails leaves one too few. Each kill (SIGKILL; rank, step and moment are drawn) must be followed by an
attempt that goes on from the latest checkpoint, and the losses at the end must equal those of a run that nobody
disturbed, bit for bit. Takes about eight seconds per kill; Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

CONFIG = Path(__file__).parent / "launch" / "tiny.py"
RANKS, CHECKPOINT_EVERY = 2, 2
PATIENCE = 120.0
"""Seconds for one attempt to come up and make its steps."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    steps = 12 * options.kills + 20  # more than all attempts make before they are killed
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        run = Run(work, "killed", steps, restarts=options.kills)
        try:
            clean, waits = 0, []
            for kills in range(options.kills):
                run.wait_for_attempt(kills)
                start = run.steps()
                run.wait_for_step(start + draw.randint(CHECKPOINT_EVERY if kills == 0 else 1, 3 * CHECKPOINT_EVERY))
                time.sleep(draw.uniform(0, 0.05))
                reached = run.steps()
                killed = time.monotonic()
                os.kill(run.ranks()[draw.randrange(RANKS)][0], signal.SIGKILL)
                run.wait_for_attempt(kills + 1)
                waits.append(time.monotonic() - killed)
                clean += run.resumed()[-1] > reached - 2 * CHECKPOINT_EVERY
                print(f"kill {kills + 1}: resumed after step {run.resumed()[-1]}, {waits[-1]:.1f} s", flush=True)
            code = run.process.wait(PATIENCE)
        finally:
            run.end()
        if code != 0:
            raise SystemExit(f"torchrun ended with {code}\n{run.output()[-4000:]}")
        whole = Run(work, "whole", steps, restarts=0)
        try:
            whole.process.wait(PATIENCE)
        finally:
            whole.end()
        same = run.figures() == whole.figures() and len(run.figures()) == steps
    print(
        f"{clean} of {options.kills} restarts came up at the first attempt and from the latest checkpoint, "
        f"{statistics.median(waits):.1f} s after the kill (median); losses and gradient norms of {steps} steps "
        f"{'equal' if same else 'DIFFER FROM'} those of an undisturbed run bit for bit"
    )
    return 0 if same and clean == options.kills else 1


class Run:
    """A training under torchrun."""

    def __init__(self, work: Path, job: str, steps: int, *, restarts: int) -> None:
        self._folder, self._log = work / "runs" / job, work / f"{job}.log"
        command = ["--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", str(restarts)]
        settings = {
            "JOB_NAME": job,
            "run_folder": str(work / "runs"),
            "data.total_steps": steps,
            "ckpt.checkpoint_every": CHECKPOINT_EVERY,
        }
        train = ["-m", "evocore", "train", "--config", str(CONFIG)]
        train += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torch.distributed.run", *command, "--monitor-interval", "0.1", *train],
                stdout=log,
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait_for_attempt(self, number: int) -> None:
        """Wait until attempt ``number``, 0 for the first, has made a step."""
        self._wait_until(lambda: len(self.resumed()) >= number, f"attempt {number} did not resume")
        self.wait_for_step(self.resumed()[-1] + 1 if number else 1)
        found = {attempt for _, attempt in self.ranks().values()}
        if found != {number}:
            raise SystemExit(f"{number} kills, but attempt {found} runs: a restart failed\n{self.output()[-4000:]}")

    def wait_for_step(self, step: int) -> None:
        self._wait_until(lambda: self.steps() >= step, f"step {step} was not made")

    def _wait_until(self, holds: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{otherwise} ({self.process.poll()=})\n{self.output()[-4000:]}")
            time.sleep(0.01)

    def ranks(self) -> dict[int, tuple[int, int]]:
        """Process id and number of the attempt of each rank."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue  # it ended meanwhile, or belongs to somebody else
            values = dict(variable.partition("=")[::2] for variable in variables)
            if parent == self.process.pid and "RANK" in values:
                found[int(values["RANK"])] = (int(folder.name), int(values["TORCHELASTIC_RESTART_COUNT"]))
        return found

    def resumed(self) -> list[int]:
        """The steps after which attempts went on."""
        return [int(step) for step in re.findall(r"^resumed from .* after step (\d+)", self.output(), re.MULTILINE)]

    def steps(self) -> int:
        """The last step that was logged."""
        figures = self.figures()
        return figures[-1][0] if figures else 0

    def figures(self) -> list[tuple[int, float, float]]:
        """Step, loss and gradient norm of each step."""
        rows = []
        for path in self._folder.glob("*/metrics.jsonl"):
            whole_lines = path.read_text().rpartition("\n")[0].splitlines()
            rows += [json.loads(line) for line in whole_lines]
        return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]

    def output(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        """End torchrun, which ends its ranks."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            for pid, _ in self.ranks().values():
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()


if __name__ == "__main__":
    sys.exit(main())
