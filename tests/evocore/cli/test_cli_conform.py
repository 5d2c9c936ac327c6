"""``evocore conform``: the table, the same as JSON, exit codes and mistakes."""

import json

import pytest

from evocore.cli.main import main

ONE = ["conform", "--backend", "cpu", "--op", "rms_norm", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def without_choices_of_the_caller(monkeypatch):
    monkeypatch.delenv("EVOCORE_BACKEND", raising=False)


def test_a_table_and_a_verdict(capsys):
    assert main([*ONE, "--provider", "reference"]) == 0
    out, err = capsys.readouterr()
    head, row, _, verdict = out.splitlines()
    assert head.split() == "op kernel dtype passed refused failed error/allowed seconds verdict".split()
    assert row.split()[:3] == ["rms_norm", "reference", "float32"] and row.split()[-1] == "passed"
    assert (verdict, err) == ("cpu: 1 conform", "")


def test_json_tells_the_same(capsys):
    assert main([*ONE, "--json", "--draws", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    reference = next(row for row in facts["kernels"] if row["provider"] == "reference")
    assert facts["backend"] == "cpu" and {row["op"] for row in facts["kernels"]} == {"rms_norm"}
    assert (reference["verdict"], reference["failed"], reference["failures"]) == ("passed", 0, [])
    assert reference["passed"] > 2 and reference["deterministic"] is True


def test_one_case_by_its_label(capsys):
    assert main([*ONE, "--provider", "reference", "--case", "5x16-unit_offset", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["kernels"]
    assert (row["passed"], row["refused"], row["failed"]) == (1, 0, 0)


def test_that_nothing_was_checked_is_no_success(capsys):
    arguments = ["conform", "--backend", "cpu", "--op", "attention", "--provider", "native", "--case", "softcap"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "serves nothing of the grid" in out and out.endswith("cpu: nothing was checked\n")
    assert "refused 1: scaled_dot_product_attention has no softcap" in out


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--backend", "nope"], "--backend='nope' names no backend"),
        (["--backend", "cpu", "--op", "rmsnorm"], "--op rmsnorm: there is none of this name here"),
        (["--backend", "cpu", "--provider", "nobody"], "--provider nobody: there is none of this name here"),
        (["--backend", "cpu", "--sizes", "huge"], "--sizes huge"),
        (["--backend", "cpu", "--case", "5x16"], "--case 5x16 without --op"),
    ],
)
def test_mistakes_have_exit_code_2(arguments, wrong, capsys):
    assert main(["conform", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"evocore: {wrong}")
