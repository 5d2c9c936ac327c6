"""Which kernels an NVIDIA GPU gets, by its generation, installed packages and what is asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evocore.backends.cuda import device as cuda_device
from evocore.backends.cuda.kernels import KERNELS
from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.errors import UserError
from evocore.ops import kernel as kernel_module
from evocore.ops.adamw import AdamWRequest
from evocore.ops.attention import AttentionBlockRequest, AttentionRequest
from evocore.ops.contracts import CONTRACTS, check_contracts
from evocore.ops.grouped_linear import GroupedLinearRequest
from evocore.ops.resolution import resolve
from evocore.ops.rms_norm import RMSNormRequest


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
