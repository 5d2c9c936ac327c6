"""Ascend NPUs as a plug-in: why it is not available, its settings, what its kernels refuse; no device is needed."""

from __future__ import annotations

import json
import os

import pytest
import torch

from evocore.backends.npu import device as npu_device
from evocore.backends.npu.collectives import NPUCollectives
from evocore.backends.npu.device import NPUBackend
from evocore.backends.npu.kernels import KERNELS
from evocore.cli.main import main
from evocore.ops.attention import AttentionBlockRequest, AttentionRequest
from evocore.ops.contracts import check_contracts
from evocore.ops.grouped_linear import GroupedLinearRequest
from evocore.ops.rotary import RotaryRequest
from evocore.plugins.manager import load_plugins

HERE = torch.__version__.split("+")[0]
RELEASE = ".".join(HERE.split(".")[:2])
BF16 = torch.bfloat16


@pytest.fixture
def backend():
    return NPUBackend()


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Installs a package ``torch_npu`` that says the version and whose import runs the source."""

    def install(version, source):
        info = tmp_path / f"torch_npu-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch-npu\nVersion: {version}\n", "utf-8")
        (tmp_path / "torch_npu.py").write_text(source, "utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    return install


# --- availability -------------------------------------------------------------------------------------------------


def test_it_is_offered_by_its_plugin_before_the_processor():
    offers = {offer.name: offer for offer in load_plugins().backends()}
    assert offers["npu"].priority > offers["cpu"].priority
    assert offers["npu"].process_group_backend == "cpu:gloo,npu:hccl"


def test_without_torch_npu_it_says_so(backend, monkeypatch):
    monkeypatch.setattr(npu_device, "find_spec", lambda name: None)
    assert backend.why_unavailable() == "the package torch_npu is not installed"


def test_a_torch_npu_for_another_pytorch_is_refused_before_it_is_imported(backend, installed):
    installed("2.11.0", "raise SystemExit('it was imported')")
    assert backend.why_unavailable() == (
        f"torch_npu 2.11.0 is built for PyTorch 2.11, found {torch.__version__}: install torch_npu {RELEASE}.*"
    )


@pytest.mark.parametrize("version", [HERE, f"{RELEASE}.99", f"{HERE}.post3"])
def test_a_torch_npu_without_cann_says_what_it_misses(backend, installed, version):
    installed(version, "raise ImportError('libhccl.so: cannot open shared object file: No such file or directory')")
    reason = backend.why_unavailable()
    assert "libhccl.so: cannot open shared object file" in reason and "source CANN's set_env.sh first" in reason


def test_packages_that_do_not_fit_are_told_without_a_device(backend, installed, monkeypatch, tmp_path, capsys):
    assert backend.package_problems() == []
    installed("2.11.0", "raise SystemExit('it was imported')")
    info = tmp_path / "triton_ascend-3.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triton-ascend\nVersion: 3.2.0\n", "utf-8")
    info = tmp_path / "triton-3.7.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: triton\nVersion: 3.7.1\n", "utf-8")

    release, folder = backend.package_problems()
    assert release.startswith("torch_npu 2.11.0 is built for PyTorch 2.11")
    assert release.endswith(f"install torch_npu {RELEASE}.*")
    assert folder.startswith("triton 3.7.1 and triton-ascend 3.2.0 share a folder") and "uninstall both" in folder

    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "600")
    assert main(["doctor", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {f"backend npu: {release}", f"backend npu: {folder}"} <= {problem["what"] for problem in facts["problems"]}
    (npu,) = (status for status in facts["backends"] if status["name"] == "npu")
    assert npu["problem"] == release and npu["versions"]["torch-npu"] == "2.11.0"
    assert facts["environment"]["HCCL_CONNECT_TIMEOUT"] == "600"


def test_versions_name_what_matters(backend, installed, monkeypatch):
    installed(HERE, "")
    monkeypatch.setenv("ASCEND_HOME_PATH", "/usr/local/Ascend/latest")
    assert backend.versions() == {"torch-npu": HERE, "CANN": "/usr/local/Ascend/latest"}


# --- settings -----------------------------------------------------------------------------------------------------


def test_every_health_problem_has_its_cure(backend, monkeypatch):
    monkeypatch.setenv("TORCH_NPU_FALLBACK_CPU_DISABLE", "1")
    monkeypatch.delenv("PYTORCH_NPU_ALLOC_CONF", raising=False)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:256")
    assert backend.health_problems() == []
    monkeypatch.setenv("PYTORCH_NPU_ALLOC_CONF", "max_split_size_mb:256")
    monkeypatch.delenv("TORCH_NPU_FALLBACK_CPU_DISABLE")
    both, fallback = backend.health_problems()
    assert "unset one" in both and "set TORCH_NPU_FALLBACK_CPU_DISABLE=1" in fallback


def test_determinism_can_be_asked_for_and_taken_back(backend, monkeypatch):
    monkeypatch.delenv("HCCL_DETERMINISTIC", raising=False)
    try:
        backend.use_deterministic(True)
        assert os.environ["HCCL_DETERMINISTIC"] == "true" and torch.are_deterministic_algorithms_enabled()
    finally:
        backend.use_deterministic(False)
        os.environ.pop("HCCL_DETERMINISTIC", None)
    assert not torch.are_deterministic_algorithms_enabled()


def test_it_trains_in_no_double_precision(backend):
    assert backend.dtypes() == {torch.float32, BF16, torch.float16} and backend.preferred_dtype() == BF16


def test_peaks_are_not_guessed(backend):
    assert backend.peak_flops(BF16, torch.device("cpu")) is None


def test_a_buffer_that_the_user_chose_is_left_alone(backend, monkeypatch):
    monkeypatch.setenv("HCCL_BUFFSIZE", "120")
    assert backend.group_options(4) is None


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64])
def test_what_hccl_does_not_reduce_is_refused_by_name(dtype):
    x = torch.ones(2, dtype=dtype)
    for call in (NPUCollectives().all_reduce, lambda x: NPUCollectives().reduce_scatter(torch.ones_like(x), x)):
        with pytest.raises(ValueError, match=f"of {dtype} over HCCL: it reduces bfloat16, .*convert the tensor"):
            call(x)


# --- kernels ------------------------------------------------------------------------------------------------------


def test_offers_keep_the_form_of_their_contracts():
    check_contracts(KERNELS)
    assert all(kernel.devices == {"npu"} and torch.float64 not in kernel.dtypes for kernel in KERNELS)
    for kernel in KERNELS:
        expected = {"npu": "torch_npu", "triton": "triton-ascend"}.get(kernel.provider)
        assert [need.partition(">")[0] for need in kernel.requires] == ([expected] if expected else [])


def fused(op):
    (kernel,) = (kernel for kernel in KERNELS if (kernel.op, kernel.provider) == (op, "npu"))
    return kernel


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (AttentionRequest(BF16, 32, 8, 128), None),
        (AttentionRequest(BF16, 32, 8, 128, window=512), None),
        (AttentionRequest(BF16, 256, 8, 512), None),
        (AttentionRequest(BF16, 32, 8, 120), "multiple of 16"),
        (AttentionRequest(BF16, 32, 8, 528), "at most 512"),
        (AttentionRequest(BF16, 257, 1, 64), "at most 256 heads"),
        (AttentionRequest(BF16, 32, 8, 128, softcap=50.0), "no softcap"),
        (AttentionBlockRequest(BF16, 32, 8, 120), "multiple of 16"),
        (RotaryRequest(BF16, 128, 64), None),
        (RotaryRequest(BF16, 1024, 448), "fewer than 896"),
        (GroupedLinearRequest(BF16, 65535, 4096, 8), None),
        (GroupedLinearRequest(BF16, 4096, 65536, 8), "below 65536"),
    ],
    ids=str,
)
def test_fused_kernels_refuse_what_the_operators_do_not_take(request_, reason):
    refused = fused(request_.op).supports(request_)
    assert refused is None if reason is None else reason in refused


def test_experts_are_moved_in_bfloat16_alone():
    assert fused("moe_permute").dtypes == fused("moe_unpermute").dtypes == {BF16}
