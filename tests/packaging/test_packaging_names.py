"""The root folders must not be taken for other people's packages of the same names."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = """
IS_STAND_IN = True

class Anything:
    def __init__(self, *arguments, **options): ...
    def __call__(self, decorated, **options): return decorated

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return Anything
"""


@pytest.fixture
def hub_kernels(tmp_path):
    """A stand-in for the package ``kernels`` of the Hugging Face hub, in a version that transformers uses."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(STAND_IN)
    return tmp_path


def version_that_transformers_uses():
    from transformers.utils.import_utils import KERNELS_MIN_VERSION

    return KERNELS_MIN_VERSION


def import_transformers(*path):
    code = (
        "import transformers.integrations.hub_kernels as hub, sys\n"
        "from transformers import LlamaForCausalLM\n"
        "kernels = sys.modules.get('kernels')\n"
        "print(hub.is_kernels_available(), getattr(kernels, 'IS_STAND_IN', None))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\nsys.path[1:1] = {list(map(str, path))!r}\n{code}"],
        cwd=ROOT,  # which is sys.path[0]: here stands the folder kernels/
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_transformers_imports_from_the_root_of_the_checkout():
    assert import_transformers()[0] == "False"


def test_transformers_finds_the_hubs_package_and_not_our_folder(hub_kernels):
    info = hub_kernels / f"kernels-{version_that_transformers_uses()}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: kernels\nVersion: {version_that_transformers_uses()}\n"
    )
    assert import_transformers(hub_kernels) == ["True", "True"]
