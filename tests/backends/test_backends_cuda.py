"""NVIDIA GPUs through the door of every device, on a machine that needs none: PyTorch's answers are stood in for."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from evocore import backend as backend_module
from evocore.backends.cuda import device as cuda_device
from evocore.backends.cuda.collectives import CUDACollectives
from evocore.backends.cuda.device import CUDABackend
from evocore.backends.cuda.kernels import KERNELS
from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.backends.cuda.peaks import PEAKS, find_peak
from evocore.errors import UserError
from evocore.ops import kernel as kernel_module
from evocore.ops.adamw import AdamWRequest
from evocore.ops.attention import AttentionBlockRequest, AttentionRequest
from evocore.ops.contracts import CONTRACTS, check_contracts
from evocore.ops.grouped_linear import GroupedLinearRequest
from evocore.ops.resolution import resolve
from evocore.ops.rms_norm import RMSNormRequest
from evocore.plugins.manager import load_plugins

H100 = "NVIDIA H100 80GB HBM3"
INSTALLED = {"flash-attn": "2.8.3", "flash-attn-3": "3.0.0", "flash-attn-4": "4.0.0b36", "triton": "3.6.0"}


class Machine:
    """What a machine tells PyTorch; its attributes can be changed at any time."""

    def __init__(self, monkeypatch):
        self.driver = 13000  # as the driver counts; None for no driver
        self.names, self.capability, self.bytes = [H100], (9, 0), 80 * 2**30
        self.architectures = ["sm_80", "sm_90", "compute_90"]
        self.nccl = (2, 28, 9)
        self.packages = dict(INSTALLED)
        monkeypatch.setattr(ctypes, "CDLL", self.library)
        monkeypatch.setattr(torch.version, "cuda", "12.8")
        for name, answer in {
            "is_available": lambda: bool(self.names),
            "device_count": lambda: len(self.names),
            "get_device_name": lambda device=None: self.names[getattr(device, "index", device) or 0],
            "get_device_capability": lambda device=None: self.capability,
            "get_arch_list": lambda: self.architectures,
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.cuda.nccl, "version", lambda: self.nccl)
        monkeypatch.setattr(dist, "is_nccl_available", lambda: self.nccl is not None)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91900)
        for module in (backend_module, kernel_module):
            monkeypatch.setattr(module, "version", self.version)

    def library(self, name):
        if self.driver is None:
            raise OSError(f"{name}: cannot open shared object file")
        return self

    def cuDriverGetVersion(self, number):  # noqa: N802 - the driver's name
        number._obj.value = self.driver
        return 0

    def version(self, package):
        if package not in self.packages:
            raise kernel_module.PackageNotFoundError(package)
        return self.packages[package]


@pytest.fixture
def machine(monkeypatch):
    for variable in (*cuda_device.ALLOCATOR_VARIABLES, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(variable, raising=False)
    kernel_module._why_unmet.cache_clear()
    yield Machine(monkeypatch)
    kernel_module._why_unmet.cache_clear()


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


# --- kernels ------------------------------------------------------------------------------------------------------


def request(dtype=torch.bfloat16, kind=AttentionRequest, **options):
    return kind(dtype, heads=16, kv_heads=4, **{"head_dim": 128} | options)


def chosen(wanted, forced=None, **options):
    (choice,) = resolve([wanted], KERNELS, "cuda", forced, **options).choices
    return choice.kernel


def test_every_contract_is_served_and_every_target_has_its_file():
    check_contracts(KERNELS)
    assert {kernel.op for kernel in KERNELS} == set(CONTRACTS)
    root = Path(cuda_device.__file__).parents[2] / "kernels"
    for kernel in KERNELS:
        if kernel.provider not in ("reference", "triton"):
            module = kernel.target.partition(":")[0].removeprefix("evocore.kernels.")
            assert (root / f"{module.replace('.', '/')}.py").is_file(), kernel.target
            assert kernel.evidence
            assert "published" in kernel.evidence or "not measured" in kernel.evidence or kernel.priority <= 10


@pytest.mark.parametrize(
    ("capability", "missing", "options", "provider"),
    [
        ((10, 0), [], {}, "flash_attn_4"),
        ((10, 0), [], {"head_dim": 256}, "native"),
        ((10, 0), [], {"softcap": 50.0}, "flash_attn_2"),
        ((9, 0), [], {}, "flash_attn_3"),
        ((9, 0), ["flash-attn-3"], {}, "native"),
        ((9, 0), ["flash-attn-3"], {"window": 64}, "native"),
        ((9, 0), ["flash-attn-3"], {"softcap": 50.0}, "flash_attn_2"),
        ((9, 0), ["flash-attn-3", "flash-attn"], {"softcap": 50.0}, "triton"),
        ((9, 0), ["flash-attn-3", "flash-attn", "triton"], {"softcap": 50.0}, "reference"),
        ((9, 0), [], {"head_dim": 100}, "sdpa"),
        ((9, 0), [], {"dtype": torch.float32}, "sdpa"),
        ((8, 6), [], {}, "native"),
        ((7, 0), [], {"dtype": torch.float16}, "sdpa"),
        ((9, 0), [], {"kind": AttentionBlockRequest}, "native"),
        ((9, 0), [], {"kind": AttentionBlockRequest, "softcap": 50.0}, "flash_attn_2"),
        ((9, 0), ["flash-attn"], {"kind": AttentionBlockRequest, "softcap": 50.0}, "triton"),
    ],
)
def test_attention_by_gpu_packages_and_request(machine, capability, missing, options, provider):
    machine.capability = capability
    for package in missing:
        del machine.packages[package]
    assert chosen(request(**options)).provider == provider


@pytest.mark.parametrize("kind", [AttentionRequest, AttentionBlockRequest])
def test_a_deterministic_run_gets_kernels_that_add_up_in_a_fixed_order(machine, kind):
    for forced, module in ((None, "varlen"), ("flash_attn_2", "flash_attn_2")):
        op = request(kind=kind).op
        kernel = chosen(request(kind=kind), forced and {op: forced}, deterministic=True)
        assert kernel.deterministic and f".{module}:" in kernel.target and kernel.arguments == {"deterministic": True}
        assert not chosen(request(kind=kind), forced and {op: forced}).deterministic


def test_without_a_gpu_the_records_can_be_read_all_the_same(machine):
    machine.names = []
    assert chosen(request()).provider == "flash_attn_4"


def test_a_forced_kernel_says_which_package_it_lacks(machine):
    machine.packages = {}
    for provider, package in (("flash_attn_2", "flash-attn>=2.8"), ("flash_attn_3", "flash-attn-3")):
        with pytest.raises(UserError, match=rf"{provider}: needs {package} \(not installed\)"):
            chosen(request(), {"attention": provider})
    with pytest.raises(UserError, match="apex: needs apex"):
        chosen(RMSNormRequest(torch.bfloat16, 64), {"rms_norm": "apex"})
    kernel_module._why_unmet.cache_clear()
    machine.packages = {"apex": "0.9.10"}  # the index has another project of that name
    with pytest.raises(UserError, match="no module fused_layer_norm_cuda"):
        chosen(RMSNormRequest(torch.bfloat16, 64), {"rms_norm": "apex"})
    with pytest.raises(UserError, match="no module amp_C"):
        chosen(AdamWRequest(torch.float32), {"adamw": "apex"})


def test_a_gpu_of_another_generation_is_the_reason(machine):
    with pytest.raises(UserError, match=r"flash_attn_4: for compute capability 10\.x, 11\.x; this GPU has 9\.0"):
        chosen(request(), {"attention": "flash_attn_4"})


def test_grouped_products_go_to_pytorchs_where_it_can(machine):
    wide, odd = (GroupedLinearRequest(torch.bfloat16, 8, inputs, 256) for inputs in (512, 100))
    assert chosen(wide).provider == "torch_grouped" and chosen(odd).provider == "triton"


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_tiles_fit_into_the_shared_memory_of_an_h100(head_dim, itemsize):
    limit = 227 * 1024
    forward, backward = (make(head_dim, itemsize) for make in (
        CUDA_LAUNCH.attention_forward, CUDA_LAUNCH.attention_backward))  # fmt: skip
    row = head_dim * itemsize
    assert forward.programs * row * (forward.queries + 2 * forward.stages * forward.keys) <= limit
    for own, other, tiles in (
        (backward.for_queries.queries, backward.for_queries.keys, backward.for_queries),
        (backward.for_keys.keys, backward.for_keys.queries, backward.for_keys),
    ):
        assert row * 2 * (own + tiles.stages * other) <= limit
    product = CUDA_LAUNCH.matmul(itemsize)
    assert product.stages * product.inner * (product.rows + product.columns) * itemsize <= limit


def test_row_kernels_fill_every_multiprocessor(monkeypatch):
    class Properties:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    device = torch.device("cuda", 63)
    assert CUDA_LAUNCH.programs(device, 10**6) == 132 * CUDA_LAUNCH.programs_per_unit
    assert CUDA_LAUNCH.programs(device, 5) == 5 and CUDA_LAUNCH.programs(device, 0) == 1
    assert [CUDA_LAUNCH.warps(size) for size in (1024, 2048, 4096, 8192, 32768)] == [4, 4, 8, 8, 32]


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
