"""``evocore checkpoint ls | verify | diff``: output, JSON and exit codes."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from evocore.checkpoint.checkpointer import Checkpointer
from evocore.cli.checkpoint import app
from evocore.errors import UserError


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def save(folder, step, state=None, **tensors):
    return Checkpointer(folder).save(step, tensors=tensors, state=state or {"step": 7})


@pytest.fixture
def folder(tmp_path):
    save(tmp_path, 100, w=torch.ones(1000))
    save(tmp_path, 200, w=torch.ones(1000))
    (tmp_path / "200" / "state.json").unlink()
    return tmp_path


def test_ls(folder):
    result = run("ls", f"local:{folder}")
    header, newest, oldest = result.stdout.splitlines()
    assert result.exit_code == 0 and header.split() == ["step", "size", "ranks", "created", "(UTC)", "state"]
    assert newest.split()[0] == "200" and newest.endswith("damaged: state.json is missing")
    assert oldest.split()[0] == "100" and oldest.endswith("complete")


def test_ls_json(folder):
    newest, oldest = json.loads(run("ls", folder, "--json").stdout)
    assert newest["step"] == 200 and newest["complete"] is False and newest["problem"] == "state.json is missing"
    assert oldest["complete"] is True and oldest["problem"] is None and oldest["world_size"] == 1
    assert oldest["path"] == str(folder / "100") and oldest["bytes"] > 4000


def test_ls_of_nothing(tmp_path):
    assert "no checkpoints" in run("ls", tmp_path).stdout and run("ls", tmp_path, "--json").stdout == "[]\n"
    assert isinstance(run("ls", tmp_path / "none").exception, UserError)


def test_verify(folder):
    good, bad = run("verify", f"local:{folder}/100"), run("verify", folder / "200")
    assert good.exit_code == 0 and "is complete: step 100" in good.stdout
    assert bad.exit_code == 2 and bad.stdout.splitlines()[1:] == ["  state.json is missing"]
    facts = json.loads(run("verify", folder / "200", "--json").stdout)
    assert facts == {"path": str(folder / "200"), "complete": False, "problems": ["state.json is missing"]}


def test_verify_reads_contents_unless_it_is_to_be_quick(folder):
    data = folder / "100" / "tensors-00000-000.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"x")
    assert run("verify", folder / "100").exit_code == 2 and "was altered" in run("verify", folder / "100").stdout
    assert run("verify", "--quick", folder / "100").exit_code == 0


def test_verify_of_what_is_not_there(tmp_path):
    assert isinstance(run("verify", tmp_path / "9").exception, UserError)


def test_diff_of_equal_checkpoints(tmp_path):
    tensors = {"w": torch.tensor([1.0, float("nan"), float("inf")]), "n": torch.arange(3), "e": torch.empty(0)}
    a, b = save(tmp_path, 1, **tensors), save(tmp_path, 2, **tensors)
    result = run("diff", a, b)
    assert result.exit_code == 0
    assert result.stdout == "3 tensors are equal bit for bit; 0 tensors and 0 state keys differ\n"
    assert json.loads(run("diff", a, b, "--json").stdout) == {
        "same": True,
        "equal_tensors": 3,
        "tensors": [],
        "state": [],
    }


def test_diff_names_what_differs(tmp_path):
    nan, inf = float("nan"), float("inf")
    left = {
        "same": torch.ones(2),
        "signs": torch.zeros(1),
        "w": torch.tensor([1.0, nan, inf, 3.0]),
        "shape": torch.ones(2, 3),
        "dtype": torch.ones(2),
        "count": torch.tensor([5, 2**40]),
        "lost": torch.tensor([1.0]),
    }
    right = left | {
        "signs": -torch.zeros(1),
        "w": torch.tensor([1.5, nan, inf, 1.0]),
        "shape": torch.ones(3, 2),
        "dtype": torch.ones(2).bfloat16() * 2,
        "count": torch.tensor([5, 2**40 + 3]),
        "lost": torch.tensor([nan]),
    }
    a = save(tmp_path, 1, {"step": 1, "a": None}, **left, mine=torch.ones(1))
    b = save(tmp_path, 2, {"step": 2}, **right, yours=torch.ones(1))

    result = run("diff", a, b, "--json")

    facts = json.loads(result.stdout)
    assert result.exit_code == 3 and facts["same"] is False and facts["equal_tensors"] == 1
    assert facts["state"] == ["a", "step"]
    assert {t["name"]: (t["kind"], t["max_abs"]) for t in facts["tensors"]} == {
        "count": ("values", 3.0),
        "dtype": ("dtype", 1.0),
        "lost": ("values", "nan"),
        "mine": ("only in A", None),
        "shape": ("shape", None),
        "signs": ("values", 0.0),
        "w": ("values", 2.0),
        "yours": ("only in B", None),
    }
    text = run("diff", a, b)
    assert text.exit_code == 3
    assert "values     w  F32 [4]  max abs difference 2" in text.stdout.splitlines()
    assert "shape      shape  F32 [2, 3] against F32 [3, 2]" in text.stdout.splitlines()
    assert text.stdout.splitlines()[-1] == "1 tensors are equal bit for bit; 8 tensors and 2 state keys differ"


def test_the_command_is_imported_without_torch():
    code = "import sys, evocore.cli.checkpoint; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
