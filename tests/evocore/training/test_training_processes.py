"""Runs in processes of their own: several ranks, and signals that stop one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import logged, values, write_config, write_corpus


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "train")
    return tmp_path


def start(config: Path, *options: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "evocore", "train", "--config", str(config), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def folder_of(corpus: Path, job: str) -> Path:
    (folder,) = (corpus / "runs" / job).iterdir()
    return folder


def wait_for_steps(corpus: Path, job: str, count: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        files = list(corpus.glob(f"runs/{job}/*/metrics.jsonl"))
        if files and files[0].read_text().count("\n") >= count:
            return
        time.sleep(0.02)
    raise AssertionError("the run made no steps")


EXACT = ("step", "loss", "grad_norm", "lr", "num_consumed_tokens")


def exact(folder: Path) -> list[tuple]:
    return [tuple(step[name] for name in EXACT) for step in logged(folder)]


def test_two_data_parallel_ranks_equal_one_process(corpus):
    one = write_config(corpus / "one.py", values(corpus, JOB_NAME="one", data=dict(micro_num=4)))
    two = write_config(corpus / "two.py", values(corpus, JOB_NAME="two", data=dict(micro_num=2)))

    single, parallel = start(one), start(two, "--nproc", "2")
    assert finish(single)[0] == 0
    code, _, err = finish(parallel)
    assert code == 0, err

    steps = list(zip(logged(folder_of(corpus, "one")), logged(folder_of(corpus, "two")), strict=True))
    assert len(steps) == 8
    for a, b in steps:
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-5)
        assert b["num_consumed_tokens"] == a["num_consumed_tokens"]
        assert b["acc"] == pytest.approx(a["acc"])


def test_sigterm_saves_and_the_same_command_goes_on_exactly(corpus):
    long = dict(data=dict(total_steps=40, micro_num=8), ckpt=dict(checkpoint_every=1000))
    config = write_config(corpus / "stopped.py", values(corpus, JOB_NAME="stopped", **long))
    whole = write_config(corpus / "whole.py", values(corpus, JOB_NAME="whole", **long))
    process = start(config)
    wait_for_steps(corpus, "stopped", 3)
    process.send_signal(signal.SIGTERM)

    code, out, err = finish(process)
    assert code == 75, err
    folder = folder_of(corpus, "stopped")
    assert out.strip() == str(folder) and "stopped after step" in err
    assert 3 <= len(logged(folder)) < 40
    assert finish(start(config))[0] == 0
    assert finish(start(whole))[0] == 0

    assert folder_of(corpus, "stopped") == folder
    assert exact(folder) == exact(folder_of(corpus, "whole"))


def test_killed_run_goes_on_from_its_last_checkpoint_exactly(corpus):
    long = dict(data=dict(total_steps=40, micro_num=8), ckpt=dict(checkpoint_every=10))
    config = write_config(corpus / "killed.py", values(corpus, JOB_NAME="killed", **long))
    whole = write_config(corpus / "whole.py", values(corpus, JOB_NAME="whole", **long))
    process = start(config)
    wait_for_steps(corpus, "killed", 14)
    process.kill()
    process.wait()

    code, _, err = finish(start(config))
    assert code == 0 and "resumed from" in err
    assert finish(start(whole))[0] == 0
    assert exact(folder_of(corpus, "killed")) == exact(folder_of(corpus, "whole"))


@pytest.mark.parametrize(
    "line, name, shown",
    [
        (
            "kernels = dict(swiglu='reference') if os.environ.get('RANK') == '1' else {}",
            "kernel table",
            ("-swiglu", "+swiglu", "-> reference"),
        ),
        ("seed = 7 if os.environ.get('RANK') == '1' else 1024", "config", ('- "seed": 1024', '+ "seed": 7')),
    ],
    ids=["kernels", "config"],
)
def test_ranks_that_would_not_run_the_same_stop_before_the_first_step_and_say_why(corpus, line, name, shown):
    config = write_config(corpus / "config.py", values(corpus, JOB_NAME="split"))
    with config.open("a") as file:  # one machine of the cluster has another environment
        file.write(f"import os\n{line}\ndel os\n")

    code, out, err = finish(start(config, "--nproc", "2"))

    assert code == 2 and out == ""
    assert len(re.findall(rf"^evocore \(rank [01]\): the ranks do not agree on {name}", err, re.MULTILINE)) == 1
    assert all(part in err for part in shown) and "Traceback" not in err
    assert not list(corpus.glob("runs/split/*/metrics.jsonl"))
