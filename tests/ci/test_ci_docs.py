"""Pages that are written from the code are what the code would write now."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

from evocore.ops.contracts import CONTRACTS
from evocore.plugins.manager import BUILT_IN, load_plugins

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def support():
    spec = importlib.util.spec_from_file_location("ci_docs_support", ROOT / "ci" / "docs" / "support.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # its dataclass looks there for its annotations
        spec.loader.exec_module(module)
        yield module


def test_the_page_of_kernels_is_up_to_date(support):
    assert support.main(["--check"]) == 0, f"docs/support.md is out of date: run {support.COMMAND}"


def test_a_page_that_is_out_of_date_is_told_and_written_anew(support, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(support, "PAGE", tmp_path / "support.md")
    assert support.main(["--check"]) == 1 and not support.PAGE.exists()
    support.PAGE.write_text(support.page().replace("float16", "float15"), "utf-8")
    assert support.main(["--check"]) == 1
    assert capsys.readouterr().err == f"support.md is out of date: run {support.COMMAND}\n" * 2
    assert support.main([]) == 0 and support.main(["--check"]) == 0


def test_every_kernel_of_every_built_in_backend_is_on_it(support, monkeypatch):
    monkeypatch.setenv("EVOCORE_DISABLE_PLUGIN_AUTOLOAD", "1")
    registry = load_plugins()
    assert {status.distribution for status in registry.statuses if status.problem is None} == {BUILT_IN}
    offered = {(next(iter(k.devices)), k.op, k.provider) for k in registry.kernels()}
    told = set()
    for backend, section in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", support.page(), re.MULTILINE | re.DOTALL):
        for op, kernels in re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", section, re.MULTILINE):
            told |= {(backend, op, re.match(r"\W*(\w+)", kernel)[1]) for kernel in kernels.split(", ")}
    assert told == offered and {op for _, op, _ in told} == set(CONTRACTS)


def test_rows_tell_order_packages_determinism_and_what_ci_runs(support):
    lines = support.page().splitlines()
    assert "| `attention` | bfloat16, float64 | **native**, **blocked**, **reference** |" in lines
    row = next(x for x in lines if x.startswith("| `attention` | bfloat16, float16 | flash_attn_4"))
    assert re.search(r"flash_attn_4\\\* \(\d+\), flash_attn_4 \(\d+\), flash_attn_3\\\* \(\d+\), native\\\*, ", row)
    assert row.endswith("triton (1), reference |") and "**" not in row
    assert {"1. `triton>=3.5`", "1. `triton-ascend>=3.2`", "2. `torch_npu>=2.9`"} <= set(lines)
    assert "| `rotary` | float32, bfloat16, float16 | **npu** (2), triton (1), **reference** |" in lines
