"""The doctor's findings, from made-up plug-ins and environments."""

import dataclasses
import json

import pytest
import torch

from evocore import hookimpl
from evocore.backend import Backend
from evocore.backends.cpu import plugin as cpu
from evocore.cli.main import main
from evocore.observe.doctor import examine, survey_backends
from evocore.ops.kernel import Kernel
from evocore.plugins.manager import PluginRegistry


class Gone(Backend):
    name, device_type, priority = "gone", "cpu", 50

    def why_unavailable(self):
        return "the cable is out"


class Crashing(Backend):
    name, device_type, priority = "crashing", "cpu", 60

    def why_unavailable(self):
        raise OSError("driver is gone")


class Unwell(Backend):
    name, device_type, priority = "unwell", "cpu", 70

    def device_name(self, device):
        return "Chip 9000"

    def versions(self):
        return {"driver": "1.0"}

    def health_problems(self):
        return ["driver 1.0 is old: update to 2.0"]


class Plugin:
    @staticmethod
    @hookimpl
    def evocore_backends():
        return [Gone, Crashing, Unwell]

    @staticmethod
    @hookimpl
    def evocore_kernels():
        floats = frozenset({torch.float32})
        return [Kernel("rms_norm", "fast", frozenset({"cpu"}), "x:y", floats, requires=("no-such-package>=1",))]


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.delenv("EVOCORE_BACKEND", raising=False)
    registry = PluginRegistry()
    registry.register(cpu, "cpu")
    registry.register(Plugin, "toys")
    return registry


def test_backends_the_preferred_one_first_with_what_each_says(registry):
    unwell, crashing, gone, cpu_status = survey_backends(registry.backends())

    assert (unwell.name, unwell.problem, unwell.devices, unwell.versions) == (
        "unwell",
        None,
        ["Chip 9000"],
        {"driver": "1.0"},
    )
    assert crashing.problem == "raised OSError: driver is gone" and "in why_unavailable" in crashing.detail
    assert (gone.name, gone.problem, gone.devices) == ("gone", "the cable is out", [])
    assert cpu_status.name == "cpu" and cpu_status.problem is None


def test_a_healthy_installation_has_no_problems():
    registry = PluginRegistry()
    registry.register(cpu, "cpu")
    diagnosis = examine(registry, {})
    assert diagnosis.problems == [] and diagnosis.chosen == "cpu"
    assert diagnosis.versions["torch"] == torch.__version__ and diagnosis.versions["python"]


def test_what_kernels_need_is_listed_whether_it_is_installed_or_not(registry):
    assert examine(registry, {}).versions["no-such-package"] == "not installed"


def test_problems_come_with_advice(registry):
    @hookimpl
    def evocore_kernels():
        raise RuntimeError("no driver")

    class Failing:
        pass

    Failing.evocore_kernels = staticmethod(evocore_kernels)
    registry.register(Failing, "failing")
    environ = {"RANK": "0", "WORLD_SIZE": "2"}
    told = {problem.what: problem.advice for problem in examine(registry, environ).problems}

    assert told["backend unwell: driver 1.0 is old: update to 2.0"]
    assert "block the plug-in" in told["backend crashing raised OSError: driver is gone"]
    (plugin,) = (advice for what, advice in told.items() if what.startswith("plug-in failing (? ?) failed"))
    assert "EVOCORE_PLUGINS=no:failing" in plugin
    (launch,) = (advice for what, advice in told.items() if "LOCAL_RANK, LOCAL_WORLD_SIZE" in what)
    assert "torchrun" in launch


def test_two_backends_of_one_name(registry):
    class Twin:
        @staticmethod
        @hookimpl
        def evocore_backends():
            return [Gone]

    registry.register(Twin, "twin")
    assert "2 backends are called gone" in [problem.what for problem in examine(registry, {}).problems]


def test_processes_that_would_share_cores_without_knowing(registry):
    environ = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    problems = examine(registry, environ).problems
    assert any("2 processes" in problem.what and "OMP_NUM_THREADS" in problem.advice for problem in problems)
    problems = examine(registry, {**environ, "OMP_NUM_THREADS": "1"}).problems
    assert not any("OMP_NUM_THREADS" in problem.advice for problem in problems)


def test_only_relevant_variables_are_shown(registry):
    environ = {
        "EVOCORE_PLUGINS": "no:x",
        "HOME": "/root",
        "SLURM_JOB_ID": "7",
        "PASSWORD": "secret",
        "MASTER_ADDR": "a",
    }
    assert set(examine(registry, environ).environment) == {"EVOCORE_PLUGINS", "SLURM_JOB_ID", "MASTER_ADDR"}


def test_everything_can_be_written_as_json(registry):
    assert json.loads(json.dumps(dataclasses.asdict(examine(registry, {}))))["chosen"] == "unwell"


def test_the_verb_prints_every_part(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("torch", "evocore.backends.cpu.plugin", "loaded", "available"):
        assert words in out
