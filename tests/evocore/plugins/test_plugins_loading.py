"""Plug-ins of strangers: found by entry point, blocked, refused, broken - and never in the way of the others."""

import json
import os
import subprocess
import sys

import pytest

from evocore import API_VERSION, hookimpl
from evocore.ops.kernel import Kernel
from evocore.plugins.manager import PluginRegistry, load_plugins

GOOD = """
import torch
from evocore import hookimpl
from evocore.backend import Backend
from evocore.ops.kernel import Kernel

class ToyBackend(Backend):
    name, device_type, priority = "toy", "cpu", -200

@hookimpl
def evocore_backends():
    return [ToyBackend]

@hookimpl
def evocore_kernels():
    return [Kernel("rms_norm", "toy", frozenset({"cpu"}), "toy:norm", frozenset({torch.float32}), priority=-300)]
"""
BROKEN = "import a_package_that_is_not_there"
NEWER = "EVOCORE_API = 99"
MISSPELT = "from evocore import hookimpl\n@hookimpl\ndef evocore_kernls():\n    return []"
RAISING = "from evocore import hookimpl\n@hookimpl\ndef evocore_kernels():\n    raise OSError('driver is gone')"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Installs modules as plug-ins of one distribution: on ``sys.path``, with its entry points."""

    def install(**plugins):
        for name, text in plugins.items():
            (tmp_path / f"evocore_{name}.py").write_text(text)
        info = tmp_path / "strangers-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.2\n")
        lines = [f"{name} = evocore_{name}" for name in plugins]
        (info / "entry_points.txt").write_text("\n".join(["[evocore]", *lines, ""]))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        for variable in ("EVOCORE_PLUGINS", "EVOCORE_DISABLE_PLUGIN_AUTOLOAD", "EVOCORE_BACKEND"):
            monkeypatch.delenv(variable, raising=False)

    yield install
    for name in [name for name in sys.modules if name.startswith("evocore_")]:
        del sys.modules[name]


def statuses(registry):
    return {status.name: status for status in registry.statuses}


def test_a_strangers_plugin_is_asked_like_the_built_in_ones(installed):
    installed(good=GOOD)
    registry = load_plugins()

    status = statuses(registry)["good"]
    assert (status.distribution, status.version, status.target) == ("strangers", "1.2", "evocore_good")
    assert status.problem is None and statuses(registry)["cpu"].problem is None
    assert {"toy", "cpu"} <= {backend.name for backend in registry.backends()}
    assert {"toy", "reference"} <= {kernel.provider for kernel in registry.kernels() if kernel.op == "rms_norm"}


def test_one_that_cannot_be_imported_is_kept_with_its_traceback_and_the_others_work(installed):
    installed(broken=BROKEN, good=GOOD)
    registry = load_plugins()

    status = statuses(registry)["broken"]
    assert status.problem == "ModuleNotFoundError: No module named 'a_package_that_is_not_there'"
    assert "evocore_broken.py" in status.detail and status.detail.startswith("Traceback")
    assert {"toy", "cpu"} <= {backend.name for backend in registry.backends()}


def test_one_for_another_api_is_refused_by_name(installed):
    installed(newer=NEWER)
    problem = statuses(load_plugins())["newer"].problem
    assert f"plug-in 'newer' is written for plug-in API 99, this evocore offers {API_VERSION}" in problem


def test_a_misspelt_hook_is_refused_by_name(installed):
    installed(misspelt=MISSPELT)
    assert "evocore_kernls" in statuses(load_plugins())["misspelt"].problem


def test_a_hook_that_raises_is_put_down_to_its_plugin_and_the_others_are_asked(installed):
    installed(raising=RAISING, good=GOOD)
    registry = load_plugins()
    assert statuses(registry)["raising"].problem is None

    assert {"toy", "reference"} <= {kernel.provider for kernel in registry.kernels() if kernel.op == "rms_norm"}
    status = statuses(registry)["raising"]
    assert status.problem == "evocore_kernels raised OSError: driver is gone"
    assert status.distribution == "strangers" and "in evocore_kernels" in status.detail


@pytest.mark.parametrize(
    "variable, value, blocked, loaded",
    [
        ("EVOCORE_PLUGINS", "no:good", {"good"}, {"cpu", "decoders"}),
        ("EVOCORE_PLUGINS", "no:cpu,no:decoders", {"cpu", "decoders"}, {"good"}),
        ("EVOCORE_DISABLE_PLUGIN_AUTOLOAD", "1", {"good"}, {"cpu", "decoders"}),
        ("EVOCORE_DISABLE_PLUGIN_AUTOLOAD", "0", set(), {"cpu", "decoders", "good"}),
    ],
)
def test_blocking(installed, monkeypatch, variable, value, blocked, loaded):
    installed(good=GOOD)
    monkeypatch.setenv(variable, value)

    found = statuses(load_plugins())
    assert {name for name, status in found.items() if status.problem == f"blocked by {variable}"} == blocked
    assert loaded <= {name for name, status in found.items() if status.problem is None}
    assert "evocore_good" not in sys.modules if "good" in blocked else "evocore_good" in sys.modules


def test_a_plugin_registered_by_hand_is_named_when_its_hook_raises():
    class Plugin:
        @staticmethod
        @hookimpl
        def evocore_kernels():
            raise ValueError("not today")

    registry = PluginRegistry()
    registry.register(Plugin, "by-hand")
    assert registry.kernels() == []
    (status,) = registry.statuses
    assert (status.name, status.target) == ("by-hand", "registered by hand") and "not today" in status.problem


def test_loading_the_built_in_plugins_imports_no_device_and_no_model():
    code = (
        "import sys; from evocore.plugins.manager import load_plugins; load_plugins();"
        "print([name for name in sys.modules if name == 'torch' or name.endswith(('.device', '.decoder'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_command_line_shows_what_failed_and_works_without_it(installed):
    installed(broken=BROKEN, raising=RAISING, good=GOOD)

    def evocore(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "evocore", *arguments], capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stderr
        return done

    listed = evocore("kernels", "--json")
    assert "toy" in {row["provider"] for row in json.loads(listed.stdout)}
    assert listed.stderr == "evocore: without what broken, raising would add: `evocore doctor` tells why\n"

    facts = json.loads(evocore("doctor", "--json").stdout)
    found = {plugin["name"]: plugin for plugin in facts["plugins"]}
    assert (
        "a_package_that_is_not_there" in found["broken"]["detail"] and "driver is gone" in found["raising"]["detail"]
    )
    told = {problem["what"]: problem["advice"] for problem in facts["problems"]}
    (advice,) = (text for what, text in told.items() if what.startswith("plug-in broken (strangers 1.2) failed"))
    assert "EVOCORE_PLUGINS=no:broken" in advice


def test_kernels_are_records_that_import_nothing_until_chosen(installed):
    installed(good=GOOD)
    (toy,) = (kernel for kernel in load_plugins().kernels() if kernel.provider == "toy")
    assert isinstance(toy, Kernel)
    with pytest.raises(ModuleNotFoundError, match="toy"):
        toy.load()
