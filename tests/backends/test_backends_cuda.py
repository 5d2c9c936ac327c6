"""NVIDIA GPUs through the door of every device, on a machine that needs none: PyTorch's answers are stood in for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from cuda_machine import H100

from evocore.backends.cuda import device as cuda_device
from evocore.backends.cuda.collectives import CUDACollectives
from evocore.backends.cuda.device import CUDABackend
from evocore.backends.cuda.peaks import PEAKS, find_peak
from evocore.plugins.manager import load_plugins


@pytest.fixture
def backend():
    return CUDABackend()


# --- availability -------------------------------------------------------------------------------------------------


def test_it_is_offered_by_its_plugin_before_the_processor():
    offers = {offer.name: offer for offer in load_plugins().backends()}
    assert offers["cuda"].priority > offers["cpu"].priority
    assert offers["cuda"].process_group_backend == "cpu:gloo,cuda:nccl"


def test_a_machine_with_gpu_and_driver_is_available(machine, backend):
    assert backend.why_unavailable() is None


def test_each_obstacle_has_its_own_reason(machine, backend, monkeypatch):
    machine.names = []
    assert "shows no GPU" in backend.why_unavailable()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES='' leaves no GPU visible" in backend.why_unavailable()
    machine.names, machine.driver = [H100], 11040
    assert "it knows CUDA 11.4" in backend.why_unavailable() and "built for CUDA 12.8" in backend.why_unavailable()
    machine.driver = None
    assert "no NVIDIA driver was found" in backend.why_unavailable()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in backend.why_unavailable()


def test_the_demo_says_in_three_lines_why_it_cannot_start(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "evocore", "demo"],
        cwd=tmp_path,
        env=os.environ | {"EVOCORE_BACKEND": "cuda", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    wrong, expected, _ = done.stderr.splitlines()
    assert "EVOCORE_BACKEND='cuda' is not available here: " in wrong
    assert "cpu (available)" in expected and "cuda (" in expected


def test_offers_are_made_without_any_vendors_package(tmp_path):
    program = """
import sys
from evocore.backends.cuda import plugin
(backend,), kernels = plugin.evocore_backends(), list(plugin.evocore_kernels())
backend().why_unavailable()
assert kernels and not {"triton", "flash_attn", "flash_attn_interface", "apex", "amp_C"} & set(sys.modules)
import torch
assert not torch.cuda.is_initialized()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=tmp_path)


def test_versions_name_what_matters(machine, backend):
    machine.packages = {"triton": "3.6.0", "flash-attn": "2.8.3"}
    versions = backend.versions()
    assert versions["CUDA"] == "12.8" and versions["CUDA of the driver"] == "13.0"
    assert versions["NCCL"] == "2.28.9" and versions["cuDNN"] == "91900"
    assert versions["triton"] == "3.6.0" and versions["flash-attn"] == "2.8.3" and "apex" not in versions


def test_a_healthy_machine_has_no_problems(machine, backend):
    assert backend.health_problems() == []


@pytest.mark.parametrize(
    ("compiled", "capability", "runs"),
    [
        ("sm_80 sm_90", (8, 6), True),
        ("sm_86 sm_90", (8, 0), False),
        ("sm_90", (10, 0), False),
        ("sm_90 compute_90", (10, 0), True),
        ("compute_120", (10, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("sm_120", (12, 1), True),
    ],
)
def test_kernels_for_a_gpu_are_looked_for_as_the_driver_does(machine, backend, compiled, capability, runs):
    machine.architectures, machine.capability = compiled.split(), capability
    assert ("no kernels for" not in "\n".join(backend.health_problems())) == runs


def test_every_health_problem_has_its_cure(machine, backend, monkeypatch):
    machine.driver, machine.nccl, machine.packages = 12020, (2, 17, 1), {}
    machine.names, machine.capability = ["Tesla V100-SXM2-16GB"], (7, 0)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:False")
    problems = "\n".join(backend.health_problems())
    for told in (
        "the driver knows CUDA 12.2, PyTorch was built for 12.8",
        "no kernels for GPU 0 (Tesla V100-SXM2-16GB, compute capability 7.0), only sm_80, sm_90, compute_90",
        "no bfloat16 units",
        "NCCL 2.17.1 is older than 2.18",
        "expandable_segments is off (expandable_segments:False)",
        "pip install 'evocore[cuda]'",
    ):
        assert told in problems
    assert len(backend.health_problems()) == 6
    machine.nccl = None
    assert any("has no NCCL" in problem for problem in backend.health_problems())


# --- memory, determinism, arithmetic ------------------------------------------------------------------------------


@pytest.fixture
def allocator(monkeypatch):
    """What is set on the way to a current device, in order."""
    told = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", told.append, raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    cuda_device._expand_segments.cache_clear()
    yield told
    cuda_device._expand_segments.cache_clear()


@pytest.mark.parametrize(
    ("variable", "chosen", "setting"),
    [
        ("PYTORCH_ALLOC_CONF", "", "expandable_segments:True"),
        ("PYTORCH_ALLOC_CONF", "max_split_size_mb:256", "max_split_size_mb:256,expandable_segments:True"),
        ("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:256", "max_split_size_mb:256,expandable_segments:True"),
        ("PYTORCH_ALLOC_CONF", "expandable_segments:False", None),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", None),
        ("PYTORCH_ALLOC_CONF", "backend:cudaMallocAsync", None),
    ],
)
def test_segments_grow_unless_the_user_chose(machine, backend, allocator, monkeypatch, variable, chosen, setting):
    monkeypatch.setenv(variable, chosen)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    backend.set_device(first)
    backend.set_device(second)
    assert allocator == [*filter(None, [setting]), first, second]


def test_determinism_can_be_asked_for_and_taken_back(backend, monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    try:
        backend.use_deterministic(True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
    finally:
        backend.use_deterministic(False)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_dtypes_follow_the_least_of_the_gpus(machine, backend):
    assert backend.preferred_dtype() == torch.bfloat16 and torch.bfloat16 in backend.dtypes()
    machine.capability = (7, 5)
    assert backend.preferred_dtype() == torch.float16
    assert backend.dtypes() == frozenset({torch.float16, torch.float32})


def test_profiles_show_host_and_device(backend):
    activities = torch.profiler.ProfilerActivity
    assert backend.profiler_activities() == [activities.CPU, activities.CUDA] and backend.pins_host_memory()


@pytest.mark.parametrize(
    ("name", "bfloat16", "float16", "tf32", "float32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4e12, 989.4e12, 494.7e12, 66.9e12),
        ("NVIDIA H100 PCIe", 756e12, 756e12, 378e12, 51.2e12),
        ("NVIDIA H200", 989.4e12, 989.4e12, 494.7e12, 66.9e12),
        ("NVIDIA H20", 148e12, 148e12, 74e12, 44e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 312e12, 156e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 312e12, 156e12, 19.5e12),
        ("NVIDIA B200", 2250e12, 2250e12, 1100e12, 80e12),
        ("NVIDIA L40S", 362.05e12, 362.05e12, 183e12, 91.6e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 165.2e12, 82.6e12, 82.6e12),
        ("Tesla V100-SXM2-32GB", None, 125e12, 15.7e12, 15.7e12),
        ("Tesla T4", None, 65e12, 8.1e12, 8.1e12),
    ],
)
def test_peaks_of_known_gpus(name, bfloat16, float16, tf32, float32):
    peak = find_peak(name)
    assert peak.of(torch.bfloat16, False) == bfloat16 and peak.of(torch.float16, False) == float16
    assert peak.of(torch.float32, True) == pytest.approx(tf32)
    assert peak.of(torch.float32, False) == pytest.approx(float32)
    assert peak.of(torch.float64, False) is None and peak.of(torch.int8, False) is None


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA A10G",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA Graphics Device",
        "",
    ],
)
def test_a_variant_is_another_gpu_and_unknown(name):
    assert find_peak(name) is None


def test_every_row_of_peaks_names_its_source_and_is_in_order():
    for peak in PEAKS:
        assert "NVIDIA" in peak.source
        ordered = [peak.float32, peak.tf32 or peak.float32, peak.bfloat16 or peak.float16, peak.float16]
        assert ordered == sorted(ordered), peak


def test_peak_of_float32_depends_on_whether_it_may_be_rounded(machine, backend):
    device, before = torch.device("cuda", 0), torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        assert backend.peak_flops(torch.float32, device) == pytest.approx(494.7e12)
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        assert backend.peak_flops(torch.float32, device) == pytest.approx(66.9e12)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert backend.peak_flops(torch.bfloat16, device) == 989.4e12
    assert backend.peak_flops_source() == "NVIDIA H100 datasheet (SXM)"
    machine.names = ["NVIDIA Something New"]
    assert backend.peak_flops(torch.bfloat16, device) is None
    assert backend.peak_flops_source() == "no figures for 'NVIDIA Something New'"


# --- collectives --------------------------------------------------------------------------------------------------


def scatter_into_itself(row, asynchronous):
    """Reduce ``tensor`` into one of its own rows; also whether the library was given that row or another place."""
    rank, world = dist.get_rank(), dist.get_world_size()
    tensor = torch.arange(world * 2.0).view(world, 2) + 100 * rank
    before, collectives = tensor.clone(), CUDACollectives()
    handle = collectives.reduce_scatter(tensor[row : row + 1], tensor, asynchronous=asynchronous)
    handle.wait()
    handle.wait()
    rest = [index for index in range(world) if index != row]
    in_place = collectives.works_in_place(tensor[row : row + 1], tensor, rank)
    return tensor[row].tolist(), torch.equal(tensor[rest], before[rest]), in_place


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("row", [0, 1])
def test_a_shard_may_lie_anywhere_in_the_whole(ranks, row, asynchronous):
    got = ranks(2, scatter_into_itself, row, asynchronous)
    # In place only where NCCL can: in a rank's own part.
    assert got == [([100.0, 102.0], True, row == 0), ([104.0, 106.0], True, row == 1)]


def test_nothing_is_sent_by_a_process_alone():
    shard = torch.empty(3)
    CUDACollectives().reduce_scatter(shard, torch.arange(3.0)).wait()
    assert shard.tolist() == [0, 1, 2]
