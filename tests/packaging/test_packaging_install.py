"""What an sdist and a wheel hold, and that every way to install works: the root folders must arrive as evocore.*."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import evocore

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"evocore": "evocore", **{name: f"evocore/{name}" for name in ("backends", "kernels", "models", "configs")}}
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs"
)
LOOK = """
import json, multiprocessing, sys
from evocore.config.shipped import shipped_config
from evocore.plugins.manager import load_plugins

def where():
    import evocore, evocore.backends.cpu.plugin, evocore.kernels.rms_norm, evocore.models.plugin
    modules = evocore, evocore.backends.cpu.plugin, evocore.kernels.rms_norm, evocore.models.plugin
    return [module.__file__ for module in modules]

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.apply(where)
    registry = load_plugins()
    print(json.dumps({
        "files": where() + [str(shipped_config("demo"))],
        "spawned": spawned,
        "plugins": [[status.name, status.distribution, status.problem] for status in registry.statuses],
    }))
"""


def run(*command, cwd, **environment):
    names = ("PATH", "HOME", "LANG", "TMPDIR")
    clean = {name: value for name, value in os.environ.items() if name in names or name.startswith(("PIP_", "LC_"))}
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the source tree, so that nothing is built in it."""
    copy = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT, symlinks=True)
    return copy


@pytest.fixture(scope="module")
def built(checkout, tmp_path_factory):
    """An sdist, and the wheel built from it."""
    dist = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(dist), cwd=checkout)
    return dist


@pytest.fixture(scope="module")
def sources(checkout):
    """Python files below the root folders, by their place in an installation."""
    return {
        str(Path(installed) / path.relative_to(checkout / folder))
        for folder, installed in FOLDERS.items()
        for path in (checkout / folder).rglob("*.py")
    }


def test_the_wheel_holds_every_module_and_nothing_else(built, sources):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert len(sources) > 100 and names == sources | {"evocore/py.typed"}
    assert not {"evocore/backends/__init__.py", "evocore/kernels/__init__.py", "evocore/models/__init__.py"} & names


def test_the_wheel_names_the_command_and_the_built_in_plugins(built):
    (wheel,) = built.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    (path,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
    lines = archive.read(path).decode().split("\n")

    assert "evocore = evocore.cli.main:main" in lines
    assert "cpu = evocore.backends.cpu.plugin" in lines and "decoders = evocore.models.plugin" in lines


def test_the_sdist_holds_the_checkout(built, checkout):
    (sdist,) = built.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(sdist).getnames()}
    wanted = {
        str(path.relative_to(checkout))
        for folder in [*FOLDERS, "tests", "docs", "ci/bench"]
        for path in (checkout / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc" and ".egg-info" not in str(path)
    }
    assert wanted | {"setup.py", "pyproject.toml", "README.md", "train.py", "ci/constraints.txt"} <= names


def test_an_installed_wheel_works_outside_the_checkout(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    target = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target), str(wheel), cwd=tmp_path)
    script = tmp_path / "look.py"
    script.write_text(LOOK)

    version = run(sys.executable, "-m", "evocore", "--version", cwd=tmp_path, PYTHONPATH=str(target))
    found = json.loads(run(sys.executable, str(script), cwd=tmp_path, PYTHONPATH=str(target)))

    assert version == f"evocore {evocore.__version__}\n"
    assert all(Path(file).is_relative_to(target) for file in [*found["files"], *found["spawned"]]), found
    assert ["cpu", "evocore", None] in found["plugins"] and ["decoders", "evocore", None] in found["plugins"]


def make_environment(folder):
    """A virtual environment that sees what this one has installed, but not its evocore; made in no time."""
    run(sys.executable, "-m", "venv", "--without-pip", str(folder), cwd=folder.parent)
    python = folder / "bin" / "python"
    own = run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder.parent).strip()
    (Path(own) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    return python


@pytest.mark.parametrize("mode", ["default", "compat"])
def test_an_editable_install_works_in_and_outside_the_checkout(mode, checkout, tmp_path):
    copy = tmp_path / "checkout"
    shutil.copytree(checkout, copy, ignore=LEFT_OUT, symlinks=True)
    python = make_environment(tmp_path / "venv")
    settings = [] if mode == "default" else ["--config-settings", f"editable_mode={mode}"]
    install = ["install", "--no-deps", "--no-build-isolation", "--ignore-installed", *settings, "-e", str(copy)]
    run(sys.executable, "-m", "pip", "--python", str(python), *install, cwd=tmp_path)
    script = tmp_path / "look.py"
    script.write_text(LOOK)

    found = json.loads(run(str(python), str(script), cwd=tmp_path))
    assert all(Path(file).is_relative_to(copy) for file in [*found["files"], *found["spawned"]]), found
    assert ["cpu", "evocore", None] in found["plugins"]
    version = f"evocore {evocore.__version__}\n"
    assert run(str(python.parent / "evocore"), "--version", cwd=tmp_path) == version
    assert run(str(python), "-m", "evocore", "--version", cwd=copy) == version
    assert "passed" in run(str(python), "-m", "pytest", "-q", "tests/laws", "-k", "root_folder", cwd=copy)


def test_the_checkout_works_without_being_installed(checkout, tmp_path):
    python = make_environment(tmp_path / "venv")
    code = "import evocore.backends.cpu.plugin, evocore.kernels.rms_norm as m; print(m.__file__)"
    assert run(str(python), "-c", code, cwd=checkout).strip() == str(
        checkout / "kernels" / "rms_norm" / "__init__.py"
    )
    assert "evocore train [OPTIONS]" in run(str(python), "train.py", "--help", cwd=checkout)
