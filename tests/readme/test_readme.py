"""What the README shows is run as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    (text,) = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return text


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The plug-in of the README, installed into a folder of its own."""
    source, target = tmp_path_factory.mktemp("toychip"), tmp_path_factory.mktemp("site")
    (source / "evocore_toychip.py").write_text(block("python"))
    (source / "pyproject.toml").write_text(block("toml"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True)
    return target


def evocore(site, *arguments, cwd=None, **variables):
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"} | variables
    command = [sys.executable, "-m", "evocore", *arguments]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_plugin_has_at_most_forty_lines():
    assert len(block("python").splitlines()) <= 40


def test_plugin_is_listed_and_chosen_by_name(site, tmp_path):
    done = evocore(site, "backends", "--json", cwd=tmp_path)
    assert done.returncode == 0 and '"toychip"' in done.stdout
    done = evocore(
        site, "kernels", "--config", str(ROOT / "configs/demo.py"), "--json", cwd=tmp_path, EVOCORE_BACKEND="toychip"
    )
    assert done.returncode == 0, done.stderr
    assert "evocore_toychip:swiglu" in done.stdout


def test_plugin_trains_with_its_own_kernel(site, tmp_path):
    config = tmp_path / "tiny.py"
    config.write_text(
        "JOB_NAME = 'tiny'\nmodel_type = 'LLAMA2'\nenable_tb = False\n"
        "data = dict(seq_len=16, micro_bsz=2, total_steps=3)\n"
        "model = dict(vocab_size=32, hidden_size=16, num_layers=1, num_attention_heads=2, mlp_ratio=2,\n"
        "    dtype='auto')\n"
        "ckpt = dict(enable_save_ckpt=False)\n"
    )
    done = evocore(site, "train", "--config", str(config), cwd=tmp_path, EVOCORE_BACKEND="toychip")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / done.stdout.strip()
    choices = json.loads((folder / "kernels.json").read_text())["choices"]
    assert {choice["op"]: choice["provider"] for choice in choices}["swiglu"] == "toychip"
    assert json.loads((folder / "environment.json").read_text())["backend"] == "toychip"
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3


def test_configs_that_the_readme_names_exist():
    for name in re.findall(r"configs/\w[\w.]*\.py", README):
        assert (ROOT / name).is_file(), name
