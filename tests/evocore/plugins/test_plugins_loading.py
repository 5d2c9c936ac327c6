"""Plug-ins of strangers: found by entry point, blocked, refused, broken - and never in the way of the others."""

import json
import os
import subprocess
import sys

import pytest

from evocore import API_VERSION, hookimpl
from evocore.cli.main import main
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
STRANGE = "from evocore import hookimpl\n@hookimpl\ndef evocore_kernels(registry):\n    return []"
ENDING = "import sys\nsys.exit('no licence')"
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


def test_a_hook_that_wants_what_there_is_not_is_refused_by_name(installed):
    installed(strange=STRANGE, good=GOOD)
    registry = load_plugins()
    assert "registry" in statuses(registry)["strange"].problem and statuses(registry)["strange"].detail
    assert "toy" in {backend.name for backend in registry.backends()}


def test_one_that_ends_the_program_when_imported_does_not(installed):
    installed(ending=ENDING, good=GOOD)
    registry = load_plugins()
    assert statuses(registry)["ending"].problem == "SystemExit: no licence"
    assert "toy" in {backend.name for backend in registry.backends()}


def test_of_two_plugins_of_one_name_the_second_is_refused_and_the_first_is_blamed_for_itself(installed, tmp_path):
    installed(raising=RAISING)
    info = tmp_path / "others-3.4.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 3.4\n")
    (info / "entry_points.txt").write_text("[evocore]\nraising = evocore_with_the_same_name\n")
    (tmp_path / "evocore_with_the_same_name.py").write_text(GOOD)
    registry = load_plugins()
    registry.kernels()

    found = [status for status in registry.statuses if status.name == "raising"]
    assert [status.distribution for status in found] == ["strangers", "others"]
    assert found[0].problem == "evocore_kernels raised OSError: driver is gone"
    assert "raising" in found[1].problem and "already registered" in found[1].problem


@pytest.mark.parametrize(
    "hook, offers, kind",
    [
        ("evocore_backends", ["cuda"], "classes derived from Backend"),
        ("evocore_backends", [object()], "classes derived from Backend"),
        ("evocore_backends", [type("Nameless", (), {})], "classes derived from Backend"),
        ("evocore_kernels", [{"op": "swiglu"}], "Kernel records"),
        ("evocore_kernels", [None], "Kernel records"),
        ("evocore_models", [Kernel], "ModelFamily records"),
    ],
)
def test_what_is_no_offer_is_put_down_to_its_plugin(hook, offers, kind):
    class Plugin:
        pass

    def answer():
        return offers

    answer.__name__ = hook
    setattr(Plugin, hook, staticmethod(hookimpl(answer)))
    registry = PluginRegistry()
    registry.register(Plugin, "odd")
    assert getattr(registry, hook.removeprefix("evocore_"))() == []
    (status,) = registry.statuses
    assert status.name == "odd" and f"among the offers, which must be {kind}" in status.problem


def test_a_hook_that_returns_one_offer_instead_of_a_list():
    class Plugin:
        @staticmethod
        @hookimpl
        def evocore_backends():
            return Kernel

    registry = PluginRegistry()
    registry.register(Plugin, "single")
    assert registry.backends() == [] and "not iterable" in registry.statuses[0].problem


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
        ("EVOCORE_PLUGINS", "no:cpu, no:decoders,", {"cpu", "decoders"}, {"good"}),
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


@pytest.mark.parametrize("value", ["good", "no:cpu,good", "yes:good", "no:"])
def test_what_does_not_block_is_refused_in_three_lines(monkeypatch, capsys, value):
    monkeypatch.setenv("EVOCORE_PLUGINS", value)
    assert main(["doctor"]) == 2
    wrong, expected, fix = capsys.readouterr().err.splitlines()
    assert f"EVOCORE_PLUGINS holds {value.split(',')[-1]!r}" in wrong and "no:NAME" in expected and "unset" in fix


def test_two_backends_of_one_name_stop_every_choice_with_both_their_classes(installed, monkeypatch, capsys):
    installed(good=GOOD, twin=GOOD)
    assert main(["backends"]) == 2
    wrong, expected, fix = capsys.readouterr().err.splitlines()
    assert "two plug-ins bring a backend named 'toy': evocore_good.ToyBackend and evocore_twin.ToyBackend" in wrong
    assert "one backend of each name" in expected and "EVOCORE_PLUGINS=no:NAME" in fix

    assert main(["doctor", "--json"]) == 0
    told = {problem["what"]: problem["advice"] for problem in json.loads(capsys.readouterr().out)["problems"]}
    assert "block all but one" in told["2 backends are called toy"]

    monkeypatch.setenv("EVOCORE_PLUGINS", "no:twin")
    assert main(["backends"]) == 0


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


def test_the_doctor_prints_the_traceback_below_the_list(installed, capsys):
    installed(broken=BROKEN, raising=RAISING)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    listed, tracebacks = (
        out.index("ModuleNotFoundError"),
        out.index("\nbroken:\n    Traceback (most recent call last)"),
    )
    assert listed < tracebacks < out.index("\nraising:\n    Traceback")
    assert "OSError: driver is gone" in out and "EVOCORE_PLUGINS=no:raising" in out


def test_kernels_are_records_that_import_nothing_until_chosen(installed):
    installed(good=GOOD)
    (toy,) = (kernel for kernel in load_plugins().kernels() if kernel.provider == "toy")
    assert isinstance(toy, Kernel)
    with pytest.raises(ModuleNotFoundError, match="toy"):
        toy.load()
