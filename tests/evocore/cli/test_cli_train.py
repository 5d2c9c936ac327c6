"""The verbs that take a config, as commands: launchers, ranks, mistakes, exit codes; the kernels of a config."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from evocore.cli.main import main

ROOT = Path(__file__).resolve().parents[3]
CONFIG = """
JOB_NAME = "tiny"
model_type = "LLAMA2"
data = dict(seq_len=16, micro_bsz=1, micro_num=1, total_steps=2)
model = dict(num_layers=1, hidden_size=16, num_attention_heads=2, vocab_size=32, mlp_ratio=2.0, dtype="torch.float32")
parallel = dict(zero1=dict(size=1))
ckpt = dict(enable_save_ckpt=False)
enable_tb = False
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("EVOCORE_", "SLURM_"))] + ["RANK", "WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


def start(*command, **environment):
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def test_internevos_form_under_slurm_prints_nothing_but_the_runs_folder(config):
    slurm = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_NODELIST": "here"}
    command = ["--config", config, "--launcher", "slurm", "--host", "127.0.0.1", "--port", "8888", "--seed", "7"]
    code, out, err = finish(start(ROOT / "train.py", *command, "--backend", "cpu", **slurm))

    assert code == 0, err
    folder = config.parent / out.strip()
    assert folder.is_dir() and len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((folder / "config.json").read_text())["values"]["seed"] == 7


def test_a_mistake_of_all_ranks_is_told_once(config):
    code, out, err = finish(start("-m", "evocore", "train", "--config", config, "--nproc", "2", "--backend", "nope"))
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 3 and "--backend='nope' names no backend" in err


def test_a_mistake_in_the_config_is_found_before_ranks_are_started(config, monkeypatch, capsys):
    monkeypatch.setattr("evocore.parallel.processes.run_processes", lambda *arguments: pytest.fail("ranks started"))
    assert main(["train", "--config", str(config), "--nproc", "2", "--set", "model.nonsense=1"]) == 2
    assert "model.nonsense" in capsys.readouterr().err


def test_ranks_are_started_with_the_same_arguments(config, monkeypatch):
    started = []
    monkeypatch.setattr(
        "evocore.parallel.processes.run_processes", lambda *arguments: started.append(arguments) or 75
    )
    options = ["--set", "data.total_steps=3", "--set", "adam.lr=1e-4", "--backend", "cpu", "--seed", "5"]
    assert main(["train", "--config", str(config), "--nproc", "3", *options]) == 75

    ((command, count),) = started
    assert count == 3 and command[:4] == [sys.executable, "-m", "evocore", "train"]
    assert command[4:] == ["--config", str(config), "--launcher", "torch", *options]

    assert main(["train", "--config", str(config), "--nproc", "2", "--model", "llama2-7b", "--shrink"]) == 75
    assert started[1][0][4:] == ["--config", str(config), "--launcher", "torch", "--model", "llama2-7b", "--shrink"]


def test_two_launchers_are_one_too_many(config, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "0")
    assert main(["train", "--config", str(config), "--nproc", "2"]) == 2
    assert "--nproc 2, but RANK=0 says" in capsys.readouterr().err


def test_a_request_to_stop_reaches_all_ranks_and_the_command_says_75(config):
    steps = [
        "--set",
        "data.total_steps=100000",
        "--set",
        "ckpt.enable_save_ckpt=True",
        "--set",
        "ckpt.checkpoint_every=100000",
    ]
    process = start("-m", "evocore", "train", "--config", config, "--nproc", "2", *steps)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if any(path.read_text() for path in config.parent.glob("runs/tiny/*/metrics.jsonl")):
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)

    code, out, err = finish(process)
    assert code == 75, err
    assert list((config.parent / out.strip() / "checkpoints").iterdir())


def test_kernels_of_a_config(config, capsys):
    assert main(["kernels", "--config", str(config), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = {row["op"]: row for row in facts["kernels"]}
    assert (facts["backend"], facts["device"]) == ("cpu", "cpu") and len(facts["digest"]) == 16
    assert {"attention", "rms_norm", "swiglu", "adamw"} <= set(rows)
    assert any("priority" in other["reason"] for other in rows["rms_norm"]["rejected"])

    assert main(["kernels", "--config", str(config), "--set", "kernels.rms_norm=reference", "--json"]) == 0
    forced = json.loads(capsys.readouterr().out)
    (row,) = (row for row in forced["kernels"] if row["op"] == "rms_norm")
    assert row["provider"] == "reference" and forced["digest"] != facts["digest"]
    here = {other["provider"]: other["reason"] for other in row["rejected"] if "cpu" in other["devices"]}
    assert here["native"] == here["analytic"] == "reference is forced"

    assert main(["kernels", "--config", str(config)]) == 0
    first, *table = capsys.readouterr().out.splitlines()
    assert facts["digest"] in first and any(line.startswith("attention") for line in table)
    assert not any("runs on" in line and "TRITON_INTERPRET" not in line for line in table)


def test_kernels_of_a_family_that_is_not_there(config, capsys):
    assert main(["kernels", "--config", str(config), "--set", "model_type=NOVEL"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "NOVEL" in err and "not supported yet" in err and "LLAMA2" in err
