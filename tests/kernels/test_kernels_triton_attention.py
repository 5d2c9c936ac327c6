"""Triton's attention: seams between tiles, who does which task, views, and what a GPU's compiler makes of it.

What it computes is held against the float64 reference; the grid of cases that every kernel must serve is elsewhere.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when it is imported

import gc
import re
import subprocess
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import ref

import pytest
import torch
import triton
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_compile import SHARED_LIMIT, Compiled, compile_for_hopper, launches_of

from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.kernels.attention import reference
from evocore.kernels.attention.schedule import TileTables, tile_table
from evocore.kernels.attention.triton_kernel import attention, attention_block
from evocore.kernels.launch import INTERPRETER, AttentionBackwardTiles, AttentionTiles, Launch
from evocore.ops.attention import Attention, CuSeqlens

OBLONG = replace(
    INTERPRETER,
    attention_forward=lambda head_dim, itemsize: AttentionTiles(16, 32, 1, 1),
    attention_backward=lambda head_dim, itemsize: AttentionBackwardTiles(
        AttentionTiles(32, 16, 1, 1), AttentionTiles(16, 32, 1, 1)
    ),
)
"""Tiles that are no squares: rows and columns taken for one another show."""
HOPPER = replace(CUDA_LAUNCH, units=lambda device: 132)
KERNELS = [
    f"evocore.kernels.attention.triton_kernel:{name}_kernel" for name in ("forward", "statistics", "queries", "keys")
]


def documents(lengths: list[int]) -> CuSeqlens:
    return CuSeqlens.of([0, *accumulate(lengths)])


def outputs_and_gradients(function: Attention, inputs: list[Tensor], **options: Any) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs, **options)
    upstream = torch.linspace(0.5, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


def normal(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_right(found: list[Tensor], inputs: list[Tensor], **options: Any) -> None:
    """Within the rounding of float32 of the reference, which is unsure itself where sums of many terms cancel."""
    for ours, theirs in zip(found, outputs_and_gradients(reference.attention, inputs, **options), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=4e-6, atol=4e-6)


@example(lengths=[(33, 0), (16, 16), (1, 40)], options={"window": 17}, head_dim=16)
@example(lengths=[(48, 5)], options={"window": 1}, head_dim=3)
@example(lengths=[(31, 2)], options={"causal": False}, head_dim=5)
@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 15, 32])), min_size=1, max_size=3),
    options=st.fixed_dictionaries(
        {}, optional={"causal": st.just(False), "window": st.integers(1, 50), "softcap": st.just(2.0)}
    ),
    head_dim=st.sampled_from([1, 5, 20]),
)
def test_documents_of_any_length(lengths: list[tuple[int, int]], options: dict[str, Any], head_dim: int):
    """The second number of a document is how many keys it has more than queries."""
    fed = {
        "q_documents": documents([m for m, _ in lengths]),
        "k_documents": documents([m + more for m, more in lengths]),
        **options,
    }
    tokens, keys = fed["q_documents"].total, fed["k_documents"].total
    inputs = [normal(tokens, 2, head_dim), normal(keys, 1, head_dim), normal(keys, 1, head_dim, seed=4)]
    found = outputs_and_gradients(attention(OBLONG), inputs, **fed)
    assert_right(found, [x.double() for x in inputs], **fed)


@pytest.mark.parametrize("options", [{"scale": -0.8}, {"scale": 0.0}, {"scale": -2.0, "softcap": 1.5}], ids=str)
def test_any_scale(options: dict[str, Any]):
    """The softmax's largest score is that of the smallest product if the scale is negative."""
    inputs = [3 * normal(19, 1, 4), normal(19, 1, 4, seed=4), normal(19, 1, 4, seed=5)]
    tokens = documents([19])
    fed = {"q_documents": tokens, "k_documents": tokens, **options}
    assert_right(outputs_and_gradients(attention(OBLONG), inputs, **fed), [x.double() for x in inputs], **fed)


def test_large_scores_do_not_overflow():
    inputs = [200 * normal(20, 1, 4), 200 * normal(20, 1, 4, seed=4), normal(20, 1, 4, seed=5)]
    tokens = documents([20])
    found = outputs_and_gradients(attention(OBLONG), inputs, q_documents=tokens, k_documents=tokens)
    assert all(x.isfinite().all() for x in found)


def test_small_scores_under_a_wide_cap_keep_their_digits():
    """``cap * tanh(score / cap)`` is then the score, and a tanh that loses digits near 0 would lose them here."""
    inputs = [normal(8, 1, 4), normal(8, 1, 4, seed=4), normal(8, 1, 4, seed=5)]
    tokens = documents([8])
    block, options = attention_block(OBLONG), {"q_documents": tokens, "k_documents": tokens}
    _, lse = block.forward(*inputs, **options, softcap=1e4)
    _, wanted = reference.attention_block.forward(*(x.double() for x in inputs), **options, softcap=1e4)
    torch.testing.assert_close(lse.double(), wanted, rtol=1e-6, atol=1e-6)


def test_half_precision_accumulates_in_float32():
    inputs = [normal(20, 2, 8).half(), normal(20, 1, 8, seed=4).half(), normal(20, 1, 8, seed=5).half()]
    tokens = documents([20])
    fed = {"q_documents": tokens, "k_documents": tokens}
    found = outputs_and_gradients(attention(OBLONG), inputs, **fed)
    for ours, theirs in zip(
        found, outputs_and_gradients(reference.attention, [x.double() for x in inputs], **fed), strict=True
    ):
        assert ours.dtype == torch.float16
        torch.testing.assert_close(ours.double(), theirs, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("units", [1, 3, 7, 50])
def test_any_number_of_programs_gives_the_same_bits(units: int):
    """Each task is done once, whoever does it, and every sum has its own order."""
    inputs = [normal(60, 2, 4), normal(60, 1, 4, seed=4), normal(60, 1, 4, seed=5)]
    tokens = documents([20, 7, 33])
    fed = {"q_documents": tokens, "k_documents": tokens}
    launch = replace(INTERPRETER, units=lambda device: units, elements=64)
    found = outputs_and_gradients(attention(launch), inputs, **fed)
    wanted = outputs_and_gradients(attention(INTERPRETER), inputs, **fed)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_views_into_a_fused_projection_are_not_copied():
    """``[T, K, group + 2, H]``, the queries of a key-value head beside it; and a layout without dense rows."""
    fused = normal(18, 2, 3, 8)
    q, k, v = fused[:, :, 0], fused[:, :, 1], fused[:, :, 2]
    tokens = documents([11, 7])
    fed = {"q_documents": tokens, "k_documents": tokens}
    wanted = outputs_and_gradients(attention(OBLONG), [x.contiguous() for x in (q, k, v)], **fed)
    transposed = [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in (q, k, v)]
    for inputs in ([q, k, v], transposed):
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            found = outputs_and_gradients(attention(OBLONG), inputs, **fed)
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))
        assert {x.data_ptr() for x in inputs} <= {x.data_ptr() for x in kept}
    started = launches_of(*KERNELS, by=lambda: outputs_and_gradients(attention(OBLONG), [q, k, v], **fed))
    steps = [each.signature["q_token"] for each in started if "q_token" in each.signature]
    assert steps == ["i32:16"] * 3  # of 2 * 3 * 8 elements, told to the compiler as divisible


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qk"])
def test_only_gradients_that_are_asked_for(wanted: str):
    inputs = [normal(9, 2, 4), normal(9, 1, 4, seed=4), normal(9, 1, 4, seed=5)]
    tokens = documents([9])
    options = {"q_documents": tokens, "k_documents": tokens}
    for name, x in zip("qkv", inputs, strict=True):
        x.requires_grad_(name in wanted)
    started = launches_of(*KERNELS, by=lambda: attention(OBLONG)(*inputs, **options).sum().backward())
    names = {each.kernel.partition(":")[2] for each in started}
    assert names == {"forward_kernel", "statistics_kernel"} | {
        "queries_kernel" if name == "q" else "keys_kernel" for name in wanted
    }
    assert [x.grad is not None for x in inputs] == [name in wanted for name in "qkv"]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=5),
    size=st.sampled_from([1, 4, 16]),
    window=st.none() | st.integers(1, 9),
    causal=st.booleans(),
)
def test_tables_have_every_tile_once_and_most_work_first(
    lengths: list[tuple[int, int]], size: int, window: int | None, causal: bool
):
    window = window if causal else None
    q_documents, k_documents = documents([m for m, _ in lengths]), documents([n for _, n in lengths])
    for side in ("queries", "keys"):
        rows = tile_table(side, size, q_documents, k_documents, causal, window).tolist()
        expected = {
            (q_first, m, k_first, n, start)
            for q_first, k_first, (m, n) in zip(q_documents.host, k_documents.host, lengths, strict=False)
            for start in range(0, m if side == "queries" else n, size)
        }
        assert len(rows) == len(expected) and {tuple(row) for row in rows} == expected
        work = []
        for _, m, _, n, start in rows:
            seen = torch.ones(m, n, dtype=torch.bool)
            if causal:
                age = torch.arange(n - m, n)[:, None] - torch.arange(n)
                seen = (age >= 0) & (age < (window or n + m + 1))
            mine = seen[start : start + size] if side == "queries" else seen[:, start : start + size].T
            work.append(int(mine.any(0).sum()))
        assert work == sorted(work, reverse=True)


def test_layers_share_a_table_that_goes_with_its_documents():
    tables, tokens = TileTables(), documents([5, 9])
    wanted = ("queries", 4, tokens, tokens, True, None, torch.device("cpu"))
    table = tables.of(*wanted)
    assert tables.of(*wanted) is table
    assert tables.of("keys", *wanted[1:]) is not table
    watched = ref(table)
    del table, tokens, wanted
    gc.collect()
    assert watched() is None


def compiled_for_hopper(launch: Launch, dtype: torch.dtype, head_dim: int) -> dict[str, Compiled]:
    """What a model with grouped queries launches, by kernel."""
    tokens = documents([300, 21])
    inputs = [torch.zeros(321, 32, head_dim, dtype=dtype), *torch.zeros(2, 321, 8, head_dim, dtype=dtype)]
    options = {"q_documents": tokens, "k_documents": tokens}
    started = launches_of(*KERNELS, by=lambda: outputs_and_gradients(attention(launch), inputs, **options))
    assert [each.kernel for each in started] == KERNELS
    names = [each.kernel.partition(":")[2] for each in started]
    return dict(zip(names, compile_for_hopper(*started), strict=True))


def test_on_a_gpu_its_matrix_units_are_kept_busy(tmp_path: Path):
    """Products run asynchronously in warp groups while the next tiles are copied; ptxas serialises them if it cannot
    follow an accumulator from one to the next, and says so."""
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    for name, found in compiled_for_hopper(HOPPER, torch.bfloat16, 128).items():
        if name == "statistics_kernel":
            continue
        told = (name, found.shared, found.registers, found.spills)
        assert found.shared <= SHARED_LIMIT and found.spills <= 512, told
        assert "wgmma.mma_async" in found.ptx and "mma.sync" not in found.ptx, told
        assert re.search(r"cp\.async\.c[ag]\.shared\.global .*0x10", found.ptx), told
        source = tmp_path / f"{name}.ptx"
        source.write_text(found.ptx)
        spoken = subprocess.run(
            [ptxas, "-v", "--gpu-name=sm_90a", source, "-o", tmp_path / "out"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
        assert "serialized" not in spoken, (name, spoken)


def test_on_a_gpu_float32_is_exact():
    small = replace(
        HOPPER,
        attention_forward=lambda head_dim, itemsize: AttentionTiles(16, 16, 4, 1),
        attention_backward=lambda head_dim, itemsize: AttentionBackwardTiles(
            AttentionTiles(16, 16, 4, 1), AttentionTiles(16, 16, 4, 1)
        ),
    )
    for name, found in compiled_for_hopper(small, torch.float32, 32).items():
        assert found.shared <= SHARED_LIMIT and found.spills == 0, name
        assert ("fma.rn.f32" in found.ptx or name == "statistics_kernel") and "tf32" not in found.ptx, name
