"""``evocore conform``: the table, the same as JSON, exit codes and mistakes."""

import json

import pytest

from evocore.backends.cpu.device import CPUBackend
from evocore.cli.main import main
from evocore.testing.conformance.check import FEATURES

ONE = ["conform", "--backend", "cpu", "--op", "rms_norm", "--dtype", "float32"]


@pytest.fixture(autouse=True)
def without_choices_of_the_caller(monkeypatch):
    monkeypatch.delenv("EVOCORE_BACKEND", raising=False)


def conform(capsys, *arguments):
    """The exit code, and the answer as JSON."""
    code = main(["conform", "--backend", "cpu", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_tables_of_results_and_of_features_and_a_verdict(capsys):
    assert main([*ONE, "--provider", "reference", "--draws", "2"]) == 0
    out, err = capsys.readouterr()
    head, row, _, features, shown, _, verdict = out.splitlines()
    assert head.split() == "op kernel dtype passed refused failed error/allowed seconds verdict".split()
    assert row.split()[:3] == ["rms_norm", "reference", "float32"] and row.split()[-1] == "passed"
    assert [word.strip() for word in features.split("  ") if word.strip()][3:] == list(FEATURES)
    counts = dict(zip(FEATURES, shown.split()[3:], strict=True))
    assert counts["values"] == row.split()[3] and counts["drawn"] == "2" and counts["mixed"] == "-"
    assert (verdict, err) == ("cpu: conforms; kernels: 1 conforms", "")


def test_json_tells_the_same(capsys):
    code, facts = conform(capsys, *ONE[3:], "--draws", "2")
    assert code == 0 and facts["conforms"] is True and facts["verdict"].startswith("conforms; kernels: ")
    reference = next(row for row in facts["kernels"] if row["provider"] == "reference")
    assert facts["backend"] == "cpu" and {row["op"] for row in facts["kernels"]} == {"rms_norm"}
    assert facts["device"] == facts["collectives"] == []
    assert (reference["verdict"], reference["failed"], reference["failures"]) == ("passed", 0, [])
    assert reference["passed"] == reference["shown"]["values"] > 2 and reference["deterministic"] is True
    assert reference["shown"]["strides"] <= reference["passed"]


def test_one_case_by_its_label(capsys):
    code, facts = conform(capsys, *ONE[3:], "--provider", "reference", "--case", "5x16-unit_offset")
    (row,) = facts["kernels"]
    assert (code, row["passed"], row["refused"], row["failed"]) == (0, 1, 0, 0)


def test_that_nothing_was_checked_is_no_success(capsys):
    arguments = ["conform", "--backend", "cpu", "--op", "attention", "--provider", "native", "--case", "softcap"]
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "serves nothing of the grid" in out and "refused 1: scaled_dot_product_attention has no softcap" in out
    assert out.endswith("\ncpu: nothing was checked of kernels; kernels: 3 serve nothing of the grid\n")


def test_the_device_and_its_collectives_are_parts(capsys):
    code, facts = conform(capsys, "--check", "random_numbers", "--check", "broadcast", "--check", "pinned_memory")
    assert code == 0 and facts["kernels"] == []
    assert [(x["check"], x["ranks"], x["verdict"]) for x in facts["device"] + facts["collectives"]] == [
        ("random_numbers", 1, "passed"),
        ("pinned_memory", 1, "not claimed"),
        ("broadcast", 2, "passed"),
        ("broadcast", 4, "passed"),
    ]
    assert facts["device"][1]["what"] == "pins_host_memory() is False" and facts["device"][0]["what"] is None
    assert facts["collectives"][0]["reproducer"] == (
        "evocore conform --backend cpu --part collectives --check broadcast"
    )


def test_what_is_skipped_is_told_and_alone_is_no_success(capsys):
    assert main(["conform", "--backend", "cpu", "--part", "device", "--check", "devices", "--skip", "devices"]) == 1
    head, row, _, verdict = capsys.readouterr().out.splitlines()
    assert head.split() == ["part", "check", "ranks", "seconds", "verdict"]
    assert row.split() == ["device", "devices", "0.0", "skipped:", "by", "--skip"]
    assert verdict == "cpu: nothing was checked of device; device: 1 skipped"


def test_a_failure_of_the_device_is_told_with_its_command(capsys, monkeypatch):
    monkeypatch.setattr(CPUBackend, "peak_flops_source", lambda self: "")
    arguments = ["conform", "--backend", "cpu", "--part", "device", "--check", "peak_flops", "--check", "records"]
    assert main(arguments) == 1
    *_, failure, command, _, verdict = capsys.readouterr().out.splitlines()
    assert failure == "device peak_flops: peak_flops_source() is '': say where the figures come from"
    assert command == "    evocore conform --backend cpu --part device --check peak_flops"
    assert verdict == "cpu: does not conform; device: 1 fails, 1 conforms"


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["--backend", "nope"], "--backend='nope' names no backend"),
        (["--backend", "cpu", "--op", "rmsnorm"], "--op rmsnorm: there is none of this name here"),
        (["--backend", "cpu", "--provider", "nobody"], "--provider nobody: there is none of this name here"),
        (["--backend", "cpu", "--sizes", "huge"], "--sizes huge"),
        (["--backend", "cpu", "--case", "5x16"], "--case 5x16 without --op"),
        (["--backend", "cpu", "--part", "kernel"], "--part kernel"),
        (["--backend", "cpu", "--check", "randomnumbers"], "--check randomnumbers: there is none of this name"),
        (["--backend", "cpu", "--part", "collectives", "--skip", "memory"], "--skip memory: there is none"),
        (["--backend", "cpu", "--part", "device", "--op", "swiglu"], "--part device with an option that selects"),
        (["--backend", "cpu", "--part", "kernels", "--check", "memory"], "--part kernels with --check"),
    ],
)
def test_mistakes_have_exit_code_2(arguments, wrong, capsys):
    assert main(["conform", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"evocore: {wrong}")
