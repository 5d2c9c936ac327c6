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

    variables = ("GONE_", "GONELIB")

    def why_unavailable(self):
        return "the cable is out"

    def versions(self):
        return {"gone-driver": 1}

    def package_problems(self):
        return ["gone-driver 1 wants gone-lib 2: install it"]

    def health_problems(self):
        raise AssertionError("it is not there")


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
    assert gone.versions == {"gone-driver": "1"} and gone.detail == ""
    assert gone.warnings == ["gone-driver 1 wants gone-lib 2: install it"]
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
    assert told["backend gone: gone-driver 1 wants gone-lib 2: install it"]
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
        "EVOCORE_PLUGINS": "no:toys",
        "GONE_HOME": "/opt/gone",
        "GONELIB": "2",
        "GONELIBRARY": "3",
        "PYTHONPATH": "/site",
        "HOME": "/root",
        "SLURM_JOB_ID": "7",
        "PASSWORD": "secret",
        "MASTER_ADDR": "a",
    }
    relevant = {"EVOCORE_PLUGINS", "GONE_HOME", "GONELIB", "PYTHONPATH", "SLURM_JOB_ID", "MASTER_ADDR"}
    assert set(examine(registry, environ).environment) == relevant


@pytest.fixture
def distribution(tmp_path, monkeypatch):
    """Installs a distribution that is nothing but its metadata."""

    def install(name, version, *requirements):
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {requirement}" for requirement in requirements]
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
        (info / "METADATA").write_text(text, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    return install


def problems_of(registry, environ=()):
    return {problem.what: problem.advice for problem in examine(registry, dict(environ)).problems}


def test_packages_that_do_not_fit_one_another_are_told_with_what_to_install(registry, distribution):
    distribution(
        "gone-driver", "1.0", "gone-lib>=2", "not-there==3", "never; python_version < '3'", "x; extra == 'y'"
    )
    distribution("gone-lib", "1.5")
    told = problems_of(registry)
    assert told["gone-driver 1.0 needs gone-lib>=2: 1.5"] == "pip install 'gone-lib>=2'"
    assert told["gone-driver 1.0 needs not-there==3: not installed"] == "pip install 'not-there==3'"
    assert not [what for what in told if "never" in what]


def test_what_pytorch_itself_needs_is_compared(registry, distribution):
    distribution("torch", "2.99.0", "triton==3.6.0; platform_system != 'Never'", "pluggy")
    distribution("triton", "3.7.1")
    told = problems_of(registry)
    assert told["torch 2.99.0 needs triton==3.6.0: 3.7.1"] == "pip install 'triton==3.6.0'"
    assert not [what for what in told if "pluggy" in what]


def test_metadata_that_cannot_be_read_is_passed_over(registry, distribution):
    distribution("gone-driver", "1.0", "no requirement at all (")
    assert problems_of(registry)


def test_offers_that_can_never_be_chosen_are_told(registry):
    class Typo:
        @staticmethod
        @hookimpl
        def evocore_kernels():
            floats = frozenset({torch.float32})
            return [
                Kernel("swigloo", "mine", frozenset({"cpu"}), "x:y", floats),
                Kernel("swiglu", "mine", frozenset({"cpu"}), "x:y", floats, requires=("some package 2",)),
            ]

    registry.register(Typo, "typo")
    told = problems_of(registry)
    (advice,) = (advice for what, advice in told.items() if "op 'swigloo' of provider 'mine'" in what)
    assert "did it mean swiglu?" in advice
    (advice,) = (advice for what, advice in told.items() if "kernel mine of swiglu requires 'some package 2'" in what)
    assert "PEP 508" in advice


def test_an_unavailable_backend_that_cannot_tell_about_itself_keeps_its_reason(registry):
    class Silent(Gone):
        name = "silent"

        def versions(self):
            raise OSError("nothing there")

    (status,) = survey_backends([Silent])
    assert status.problem == "the cable is out; asked for more, it raised OSError: nothing there"
    assert "in versions" in status.detail


def test_a_block_that_blocks_nothing_is_told(registry):
    told = problems_of(registry, {"EVOCORE_PLUGINS": "no:toyz"})
    assert told["EVOCORE_PLUGINS blocks toyz, which is not installed"]


def test_everything_can_be_written_as_json(registry):
    assert json.loads(json.dumps(dataclasses.asdict(examine(registry, {}))))["chosen"] == "unwell"


def test_the_verb_prints_every_part(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    for words in ("torch", "evocore's plug-in API", "evocore.backends.cpu.plugin", "loaded", "available", "threads"):
        assert words in out
