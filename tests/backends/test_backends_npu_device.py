"""The NPU backend on a device that is written in Python, in processes of their own: a device cannot be taken back.

What is checked there is in ``tests/emulation/python_npu/checks``, what that proves in ``tests/emulation/README.md``.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from evocore.config import load_config
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests" / "emulation" / "python_npu"
CHECKS = sorted((STANDIN / "checks").glob("checks_*.py"))
TINY = ROOT / "ci" / "npu_contract" / "tiny.py"
STEPS = 4
EVOCORE = (sys.executable, "-m", "evocore")


def start(folder, *command, **variables):
    """A process with the stand-in, in an empty folder: its own variables over those of this one, without pytest's."""
    folder.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.Popen(
        [sys.executable, STANDIN / "stage.py", *command],
        cwd=folder,
        env=kept | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder), **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, f"{out}\n{err}"
    return out, err


def test_there_are_checks():
    assert len(CHECKS) == 3


@pytest.mark.parametrize("checks", CHECKS, ids=lambda path: path.stem)
def test_on_the_device(checks, tmp_path):
    options = ("-q", "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml")
    out, _ = finish(start(tmp_path, sys.executable, "-m", "pytest", *options, checks))
    assert "passed" in out and "skipped" not in out and "failed" not in out, out


def test_the_command_line_serves_the_device(tmp_path):
    table = start(tmp_path / "kernels", *EVOCORE, "kernels", "--backend", "npu")
    kit = start(
        tmp_path / "kit", *EVOCORE, "conform", "--backend", "npu", "--op", "rms_norm", "--provider", "npu",
        "--dtype", "float32", "--draws", "0", "--sizes", "small", "--json",
    )  # fmt: skip
    lines = [line.split() for line in finish(table)[0].splitlines()]
    assert ["attention", "npu", "npu", "bfloat16,", "float16,", "float32", "torch_npu>=2.9"] in [x[:7] for x in lines]
    (row,) = json.loads(finish(kit)[0])["kernels"]
    assert (row["op"], row["provider"], row["verdict"]) == ("rms_norm", "npu", "passed") and row["passed"] > 5


def test_collectives_keep_their_contracts_on_as_many_devices_as_ranks(tmp_path):
    """In two and in four processes, each with a device of its own."""
    command = (*EVOCORE, "conform", "--backend", "npu", "--part", "collectives", "--json")
    answer = json.loads(finish(start(tmp_path, *command, PYTHON_NPU_DEVICES="4"))[0])
    assert answer["conforms"] and {found["ranks"] for found in answer["collectives"]} == {1, 2, 4}
    assert {found["verdict"] for found in answer["collectives"]} == {"passed"}


def test_collectives_that_lack_devices_are_told_and_not_counted(tmp_path):
    command = (*EVOCORE, "conform", "--backend", "npu", "--check", "broadcast", "--json")
    answer = json.loads(finish(start(tmp_path, *command), code=1)[0])
    assert not answer["conforms"] and answer["verdict"].startswith("nothing was checked of collectives")
    assert [(found["verdict"], found["what"]) for found in answer["collectives"]] == [
        ("skipped", f"{ranks} ranks need {ranks} devices, found 1") for ranks in (2, 4)
    ]


def test_a_machine_without_a_device_says_so_in_three_lines(tmp_path):
    out, err = finish(start(tmp_path, *EVOCORE, "kernels", "--backend", "npu", PYTHON_NPU_DEVICES="0"), code=2)
    wrong, *rest = err.splitlines()
    assert out == "" and len(rest) == 2
    assert "--backend='npu' is not available here: torch_npu finds no NPU: check the driver (npu-smi info)" in wrong


class Figures(Observer):
    def __init__(self):
        self.steps = []

    def on_step(self, metrics):
        self.steps.append((metrics["loss"], metrics["grad_norm"]))


def test_two_processes_over_hccl_train_as_one_does(tmp_path):
    """Two machines with a device each: what one process computes in two micro-batches, each does one of."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    settings = (f"data.total_steps={STEPS}", "data.micro_num=1", f"run_folder={str(tmp_path / 'runs')!r}")
    command = [*EVOCORE, "train", "--config", TINY, "--backend", "npu"]
    command += [word for setting in settings for word in ("--set", setting)]
    ranks = [start(tmp_path / str(rank), *command, RANK=str(rank), MASTER_PORT=port, **shared) for rank in range(2)]
    one = Figures()
    alone = load_config(TINY, [f"data.total_steps={STEPS}", f"run_folder={str(tmp_path / 'one')!r}"])
    train(alone, load_plugins(), LaunchEnvironment(), backend="cpu", observers=[one])
    folder = Path(finish(ranks[0])[0].strip())
    finish(ranks[1])
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    both = [(step["loss"], step["grad_norm"]) for step in map(json.loads, lines)]
    assert len(both) == len(one.steps) == STEPS
    for found, expected in zip(both, one.steps, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert "Ascend910B2" in json.dumps(environment)
