"""The conformance kit as tests in the repository of a plug-in, in processes that find it by its entry point.

The plug-in brings two chips: one that keeps its contracts, and one that breaks one of each kind.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from evocore.testing.conformance.pytest_plugin import NAME

CHIPS = """
import torch

from evocore import hookimpl
from evocore.backend import Backend
from evocore.backends.cpu.device import CPUBackend
from evocore.kernels.references import reference_kernels
from evocore.ops.collectives import Collectives
from evocore.ops.kernel import Kernel


class GoodChip(CPUBackend):
    name = "goodchip"


class SumsOnly(Collectives):
    def all_reduce(self, tensor, group=None, *, op="sum", asynchronous=False):
        return super().all_reduce(tensor, group, op="sum" if op == "avg" else op, asynchronous=asynchronous)


class BadChip(CPUBackend):
    name = "badchip"

    def set_rng_state(self, state, device):
        pass

    def collectives(self):
        return SumsOnly()


class BareChip(CPUBackend):
    name = "barechip"
    device_type = "meta"

    def device(self, local_rank=0):
        return torch.device("meta")


def swiglu(gate_TF, up_TF):
    return torch.relu(gate_TF) * up_TF


@hookimpl
def evocore_backends():
    return [GoodChip, BadChip, BareChip]


@hookimpl
def evocore_kernels():
    return [Kernel("swiglu", "chips", frozenset({"cpu"}), "chips:swiglu", frozenset({torch.float32}), priority=100)]
"""
PLUGIN = ("-p", "evocore.testing.conformance.pytest_plugin")


@pytest.fixture
def repository(tmp_path):
    """An empty folder, beside one in which the plug-in is installed."""
    site, here = tmp_path / "site", tmp_path / "repository"
    info = site / "chips-1.0.dist-info"
    info.mkdir(parents=True)
    here.mkdir()
    (site / "chips.py").write_text(CHIPS, "utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: chips\nVersion: 1.0\n", "utf-8")
    (info / "entry_points.txt").write_text("[evocore]\nchips = chips\n", "utf-8")
    return here


def run(repository, *arguments, code=0):
    """What pytest prints in the folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "EVOCORE_", "COV_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *arguments],
        cwd=repository,
        env=kept | {"PYTHONPATH": str(repository.parent / "site"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    return text


def outcomes(text):
    """Test -> what became of it."""
    return {name: word for word, name in re.findall(r"^(PASSED|FAILED|ERROR) (\S+::\S+)", text, re.MULTILINE)}


def of_suite(name, test):
    return f"{NAME}::test_{name}[{test}]"


def test_a_backend_that_keeps_its_contracts_passes_beside_the_tests_of_the_repository(repository):
    (repository / "test_own.py").write_text("def test_own():\n    pass\n", "utf-8")
    chosen = "own or memory or streams or broadcast or alone or (swiglu and reference and float32)"
    text = run(repository, *PLUGIN, "--evocore-backend", "goodchip", "-k", chosen)
    found = outcomes(text)
    assert "evocore: conformance of the backend goodchip" in text and set(found.values()) == {"PASSED"}
    assert {"test_own.py::test_own", of_suite("collectives_conform", "goodchip-alone-1-rank")} <= found.keys()
    assert {of_suite("device_conforms", f"goodchip-{check}") for check in ("memory", "streams")} <= found.keys()
    assert {of_suite("collectives_conform", f"goodchip-broadcast-{n}-ranks") for n in (2, 4)} <= found.keys()
    assert of_suite("kernel_conforms", "swiglu-reference-float32-1x1") in found
    assert re.search(r"^SKIPPED \[1\] .*: pins_host_memory\(\) is False$", text, re.MULTILINE)


def test_a_backend_that_breaks_them_fails_where_it_does(repository):
    chosen = "random_numbers or records or (all_reduce and 2-ranks) or (broadcast and 2-ranks) or swiglu-chips"
    text = run(repository, *PLUGIN, "--evocore-backend", "badchip", "-k", chosen, code=1)
    found = outcomes(text)
    failed = {name for name, word in found.items() if word == "FAILED"}
    assert found.keys() - failed >= {
        of_suite("device_conforms", "badchip-records"),
        of_suite("collectives_conform", "badchip-broadcast-2-ranks"),
    }
    assert failed >= {
        of_suite("device_conforms", "badchip-random_numbers"),
        of_suite("collectives_conform", "badchip-all_reduce-2-ranks"),
        of_suite("kernel_conforms", "swiglu-chips-float32-1x1"),
    }
    assert "set_rng_state(rng_state()) does not bring back the numbers of the host" in text
    for command in (
        "--part device --check random_numbers",
        "--part collectives --check all_reduce",
        "--op swiglu --provider chips --dtype float32 --case 1x1",
    ):
        assert f"to see it again: evocore conform --backend badchip {command}" in text


def test_a_module_of_two_lines_collects_them_too(repository):
    suite = "from evocore.testing.conformance.suite import *\n\nEVOCORE_BACKEND = 'badchip'\nEVOCORE_OP = 'swiglu'\n"
    (repository / "test_chip.py").write_text(suite, "utf-8")
    found = outcomes(run(repository, code=1))
    assert {name.partition("[")[0] for name in found} == {"test_chip.py::test_kernel_conforms"}
    words = {
        provider: {word for name, word in found.items() if f"[swiglu-{provider}-" in name}
        for provider in ("chips", "reference", "analytic")
    }
    assert words["reference"] == words["analytic"] == {"PASSED"} and "FAILED" in words["chips"]


@pytest.mark.parametrize(
    ("arguments", "code", "what"),
    [
        (("--evocore-backend", "nochip"), 2, "--backend='nochip' names no backend"),
        (("--evocore-backend", "barechip"), 2, "no plug-in offers a kernel for barechip"),
        (("--evocore-op", "swiglu"), 4, "--evocore-sizes need --evocore-backend NAME"),
    ],
)
def test_what_cannot_be_checked_is_an_error_and_no_success(arguments, code, what, repository):
    assert what in run(repository, *PLUGIN, *arguments, code=code)
