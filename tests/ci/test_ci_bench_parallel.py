"""The benchmark of the parallel runtime runs through and reports; what it measures is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "ci" / "bench" / "parallel.py"
TARGETS = {
    "overhead: neither compute nor exchanges, share of a step": 0.05,
    "zero: step of DDP / evocore": 1.0,
    "zero: step of FSDP2 / evocore": 1.25,
    "isp: gathers hidden by overlap": 0.7,
    "isp-sequence: gathers hidden by overlap": 0.7,
    "alone: runtime over a loop by hand, longer by": 0.01,
}


def bench(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "parallel.json"
    done = bench("--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def figures(result):
    return {figure["name"]: figure for part in result["parts"].values() for figure in part["figures"]}


def test_every_target_has_a_figure_and_a_line_of_the_table(quick):
    table, result = quick
    found = figures(result)
    lines = {name: line for line in table.splitlines() for name in found if line.startswith(name)}
    assert set(lines) == set(found)
    assert {name: found[name]["wanted"] for name in TARGETS} == TARGETS
    for name in TARGETS:
        assert lines[name].endswith(" met" if found[name]["met"] else " missed"), lines[name]


def test_what_is_compared_does_the_same_arithmetic(quick):
    losses = [figure for name, figure in figures(quick[1]).items() if "losses" in name]
    assert len(losses) == 4
    assert all(figure["met"] for figure in losses), losses


def test_the_exchanges_that_are_replayed_are_those_of_a_step(quick):
    part = quick[1]["parts"]["overhead"]
    ops = [op for op, _ in part["exchanges"]]
    assert ops == ["reduce_scatter", "all_reduce", "all_gather", "all_reduce"]
    sizes = dict(part["exchanges"][::2])
    assert sizes["reduce_scatter"] == sizes["all_gather"] >= 4 * part["parameters"]


def test_formulas_say_what_ranks_hold(quick):
    parts = quick[1]["parts"]
    parameters = parts["overhead"]["parameters"]
    held = {name: parts["memory"][name]["held"] / parameters for name in ("evocore", "DDP", "FSDP2")}
    assert held["DDP"] == 16 and held["FSDP2"] == 8
    assert 12 <= held["evocore"] < 16


def test_an_unknown_part_is_refused_with_those_there_are():
    done = bench("--only", "overhead,everything")
    assert done.returncode == 2
    assert "no part everything: there are overhead, zero, memory, isp, isp-sequence, alone" in done.stderr
