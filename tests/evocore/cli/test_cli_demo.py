"""The demo from end to end, made small: its own text, two processes under torchrun, the closing table."""

import json
import os
import subprocess
import sys

import pytest

SMALL = {
    "data.total_steps": 3,
    "data.valid_every": 3,
    "data.valid_max_packs": 2,
    "data.raw.max_bytes": 300_000,
    "model.num_layers": 1,
    "ckpt.checkpoint_every": 10,
}


def demo(folder, *options, **variables):
    sets = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "evocore", "demo", *sets, *options]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)


@pytest.mark.parametrize("processes", [1, 2])
def test_demo_trains_and_shows_what_came_of_it(tmp_path, processes):
    done = demo(tmp_path, *(["--nproc", "2"] if processes == 2 else []))

    assert done.returncode == 0, done.stderr
    assert "validation loss, untrained" in done.stdout and "validation loss, step 3" in done.stdout
    assert "What it wrote after 'def read(self, ':\n\ndef read(self, " in done.stdout
    (folder,) = (tmp_path / "runs" / "demo").iterdir()
    assert str(folder.relative_to(tmp_path)) in done.stdout
    assert json.loads((folder / "environment.json").read_text())["world_size"] == processes
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [step for step in steps if "loss" in step]
    assert [step["num_consumed_tokens"] for step in trained] == [512 * processes * number for number in (1, 2, 3)]


def test_a_mistake_is_told_once_before_processes_are_started(tmp_path):
    done = demo(tmp_path, "--nproc", "2", EVOCORE_BACKEND="nope")

    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 3 and "EVOCORE_BACKEND='nope'" in done.stderr
    assert not (tmp_path / "runs").exists()
