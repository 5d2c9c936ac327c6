"""``moe_permute``, ``moe_unpermute`` and ``grouped_linear`` against loops over single rows, in every provider.

What dropped choices and rows of nobody hold must not matter, so here it is not a number wherever the contract allows.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, product
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton_compile import SHARED_LIMIT, Compilation, Compiled, compile_for_hopper

from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.kernels.grouped_linear.limits import why_not
from evocore.kernels.launch import INTERPRETER
from evocore.kernels.triton_kernels import only_interpreted
from evocore.ops.grouped_linear import GroupedLinearRequest, Groups
from evocore.ops.moe import MoEPermuteRequest, Permutation, permutation_of

LAUNCH = replace(INTERPRETER, elements=16)
"""So few that rows of some tens of columns are cut, and that narrower ones share a program."""


def _maybe(provider: str) -> Any:
    reason = only_interpreted(MoEPermuteRequest(torch.float32, 1, 1, 1)) if provider == "triton" else None
    return pytest.param(provider, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))


MOE = [_maybe(provider) for provider in ("reference", "native", "triton")]
GROUPED = [_maybe(provider) for provider in ("reference", "native", "torch_grouped", "triton")]


def load(op: str, provider: str) -> tuple[Callable[..., Any], torch.dtype, float]:
    """The kernel, the dtype to test it in and the tolerance."""
    folder = "grouped_linear" if op == "grouped_linear" else "moe_permute"
    module = importlib.import_module(f"evocore.kernels.{folder}.{provider}{'_kernel' * (provider == 'triton')}")
    if provider == "triton":
        return getattr(module, op)(LAUNCH), torch.float32, 1e-5
    if provider == "torch_grouped":
        return getattr(module, op), torch.float32, 1e-5  # its operator knows no float64
    return getattr(module, op), torch.float64, 1e-12


def close(found: Tensor | None, expected: Tensor, tolerance: float) -> None:
    assert found is not None
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


class Routed(NamedTuple):
    """A routing with the row of every choice, found by sorting ``(expert, token, choice)``."""

    experts_TK: Tensor
    experts: int
    row: dict[tuple[int, int], int]
    kept: list[tuple[int, int]]

    @classmethod
    def of(cls, experts_TK: Tensor, experts: int) -> Routed:
        tokens, top_k = experts_TK.shape
        choices = [(experts_TK[t, k].item(), t, k) for t, k in product(range(tokens), range(top_k))]
        kept = sorted(choice for choice in choices if choice[0] >= 0)
        lost = [choice for choice in choices if choice[0] < 0]
        row = {(t, k): r for r, (_, t, k) in enumerate(kept + lost)}
        return cls(experts_TK, experts, row, [(t, k) for _, t, k in sorted(kept, key=lambda each: each[1:])])


@st.composite
def routings(draw: st.DrawFn) -> Routed:
    tokens, top_k = draw(st.integers(0, 6)), draw(st.integers(1, 3))
    experts = top_k + draw(st.integers(0, 4))
    choices = st.lists(st.integers(0, experts - 1), min_size=top_k, max_size=top_k, unique=True)
    chosen = torch.tensor([draw(choices) for _ in range(tokens)], dtype=torch.int64).view(tokens, top_k)
    lost = torch.tensor([draw(st.booleans()) for _ in range(tokens * top_k)], dtype=torch.bool).view(tokens, top_k)
    return Routed.of(chosen.where(~(lost & draw(st.booleans())), -1), experts)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("provider", MOE)
@settings(deadline=None, max_examples=25)
@given(routed=routings(), width=st.integers(1, 37), seed=st.integers(0, 999))
def test_permute_copies_tokens_to_the_rows_of_their_choices(provider: str, routed: Routed, width: int, seed: int):
    kernel, dtype, tolerance = load("moe_permute", provider)
    (tokens, top_k), kept = routed.experts_TK.shape, len(routed.kept)
    x_TD, grad_RD = normal(seed, tokens, width), normal(seed + 1, tokens * top_k, width)
    expected_RD, expected_grad_TD = torch.zeros_like(grad_RD), torch.zeros_like(x_TD)
    for t, k in routed.kept:
        expected_RD[routed.row[t, k]] = x_TD[t]
        expected_grad_TD[t] += grad_RD[routed.row[t, k]]
    grad_RD[kept:] = math.nan

    x = x_TD.to(dtype).requires_grad_()
    rows_RD, permutation = kernel(x, routed.experts_TK, experts=routed.experts)
    rows_RD.backward(grad_RD.to(dtype))
    close(rows_RD, expected_RD, tolerance)
    close(x.grad, expected_grad_TD, tolerance)
    assert permutation.row_TK.dtype == permutation.source_R.dtype == permutation.groups.ends_E.dtype == torch.int32
    row_TK = permutation.row_TK.tolist()
    assert all(row_TK[t][k] == routed.row[t, k] for t, k in routed.kept)
    assert permutation.groups.sizes() == tuple((routed.experts_TK == e).sum().item() for e in range(routed.experts))


@pytest.mark.parametrize("provider", MOE)
@settings(deadline=None, max_examples=25)
@given(routed=routings(), width=st.integers(1, 37), seed=st.integers(0, 999))
def test_unpermute_adds_up_the_weighted_rows_of_a_token(provider: str, routed: Routed, width: int, seed: int):
    kernel, dtype, tolerance = load("moe_unpermute", provider)
    (tokens, top_k), kept = routed.experts_TK.shape, len(routed.kept)
    rows_RD, weights_TK = normal(seed, tokens * top_k, width), normal(seed + 1, tokens, top_k)
    grad_TD = normal(seed + 2, tokens, width)
    expected_TD, expected_rows_RD = torch.zeros_like(grad_TD), torch.zeros_like(rows_RD)
    expected_weights_TK = torch.zeros_like(weights_TK)
    for t, k in routed.kept:
        expected_TD[t] += weights_TK[t, k] * rows_RD[routed.row[t, k]]
        expected_rows_RD[routed.row[t, k]] = weights_TK[t, k] * grad_TD[t]
        expected_weights_TK[t, k] = rows_RD[routed.row[t, k]] @ grad_TD[t]
    rows_RD[kept:] = math.nan
    weights_TK[routed.experts_TK < 0] = math.nan

    rows, weights = rows_RD.to(dtype).requires_grad_(), weights_TK.to(dtype).requires_grad_()
    y_TD = kernel(rows, permutation_of(routed.experts_TK, routed.experts), weights)
    y_TD.backward(grad_TD.to(dtype))
    close(y_TD, expected_TD, tolerance)
    close(rows.grad, expected_rows_RD, tolerance)
    close(weights.grad, expected_weights_TK, tolerance)


@pytest.mark.parametrize("provider", MOE)
@pytest.mark.parametrize("top_k", (1, 2, 4))
def test_the_mean_of_a_tokens_rows_is_the_token(provider: str, top_k: int):
    permute, dtype, _ = load("moe_permute", provider)
    unpermute, *_ = load("moe_unpermute", provider)
    x_TD = normal(0, 9, 20).to(dtype)
    experts_TK = normal(1, 9, 6).argsort(-1)[:, :top_k]
    rows_RD, permutation = permute(x_TD, experts_TK, experts=6)
    mean_TD = unpermute(rows_RD, permutation, x_TD.new_full((9, top_k), 1 / top_k))
    assert torch.equal(mean_TD, x_TD)


@pytest.mark.parametrize("provider", MOE)
def test_inputs_with_gaps_and_gradients_that_nobody_wants(provider: str):
    permute, dtype, tolerance = load("moe_permute", provider)
    unpermute, *_ = load("moe_unpermute", provider)
    experts_TK = torch.tensor([[0, 2], [2, -1], [1, 0]])
    x_TD = torch.stack((normal(0, 20, 3), normal(1, 20, 3)), -1).to(dtype)[..., 0].T
    rows_RD, permutation = permute(x_TD, experts_TK, experts=3)
    close(rows_RD, x_TD.double()[[0, 2, 2, 0, 1, 1]] * torch.tensor([1, 1, 1, 1, 1, 0])[:, None], tolerance)
    assert not rows_RD.requires_grad

    gaps_RD, weights_TK = rows_RD.T.contiguous().T, normal(2, 2, 3).to(dtype).T
    expected_TD = unpermute(rows_RD, permutation, weights_TK.contiguous())
    for wants_rows, wants_weights in ((True, False), (False, True)):
        rows = gaps_RD.detach().requires_grad_(wants_rows)
        weights = weights_TK.detach().requires_grad_(wants_weights)
        y_TD = unpermute(rows, permutation, weights)
        close(y_TD, expected_TD.double(), tolerance)
        y_TD.sum().backward()
        assert (rows.grad is None, weights.grad is None) == (not wants_rows, not wants_weights)
        if wants_weights:
            kept_TK = experts_TK >= 0
            close(weights.grad, (x_TD.double().sum(1)[:, None] * kept_TK), tolerance)


@pytest.mark.parametrize("experts", (1, 255, 256, 40_000))
def test_permutations_of_few_and_of_many_experts(experts: int):
    experts_TK = torch.randint(-1, experts, (50, 3), generator=torch.Generator().manual_seed(0))
    experts_TK[0] = experts - 1
    routed = Routed.of(experts_TK, experts)
    found: Permutation = permutation_of(experts_TK, experts)
    order = sorted(routed.row, key=lambda choice: routed.row[choice])
    assert found.row_TK.tolist() == [[routed.row[t, k] for k in range(3)] for t in range(50)]
    assert found.source_R.tolist() == [3 * t + k for t, k in order]
    assert found.groups.sizes() == tuple(torch.bincount(experts_TK[experts_TK >= 0], minlength=experts).tolist())


@pytest.mark.parametrize("provider", GROUPED)
@settings(deadline=None, max_examples=15)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5),
    nobodys=st.integers(0, 3),
    widths=st.tuples(st.integers(1, 5), st.integers(1, 10)),
    known=st.booleans(),
    seed=st.integers(0, 999),
)
@example(sizes=[0, 7, 0], nobodys=0, widths=(4, 4), known=False, seed=0)
@example(sizes=[0, 0, 37], nobodys=2, widths=(4, 4), known=False, seed=0)
@example(sizes=[0, 0], nobodys=3, widths=(4, 2), known=False, seed=0)
@example(sizes=[0, 0], nobodys=0, widths=(4, 2), known=False, seed=0)
@example(sizes=[100, 3, 61], nobodys=33, widths=(2, 10), known=True, seed=0)  # several bands of tiles
def test_grouped_linear_is_one_product_per_row(
    provider: str, sizes: Sequence[int], nobodys: int, widths: tuple[int, int], known: bool, seed: int
):
    kernel, dtype, tolerance = load("grouped_linear", provider)
    # Multiples of 4, except where no operator of PyTorch's wants them, so that tiles are partly filled there.
    inputs, outputs = (4 * width - (provider != "torch_grouped" and seed % 2) for width in widths)
    rows, groups = sum(sizes) + nobodys, Groups.of(sizes)
    x_RD, weight_EFD = normal(seed, rows, inputs), normal(seed + 1, len(sizes), outputs, inputs)
    grad_RF = normal(seed + 2, rows, outputs)
    expected_RF, expected_x_RD = torch.zeros_like(grad_RF), torch.zeros_like(x_RD)
    expected_weight_EFD = torch.zeros_like(weight_EFD)
    for e, (end, size) in enumerate(zip(accumulate(sizes), sizes, strict=True)):
        for r in range(end - size, end):
            expected_RF[r] = weight_EFD[e] @ x_RD[r]
            expected_x_RD[r] = grad_RF[r] @ weight_EFD[e]
            expected_weight_EFD[e] += grad_RF[r][:, None] * x_RD[r]
    x_RD[sum(sizes) :] = grad_RF[sum(sizes) :] = math.nan

    x, weight = x_RD.to(dtype).requires_grad_(), weight_EFD.to(dtype).requires_grad_()
    y_RF = kernel(x, weight, groups if known else Groups(groups.ends_E))
    y_RF.backward(grad_RF.to(dtype))
    close(y_RF, expected_RF, tolerance)
    close(x.grad, expected_x_RD, tolerance)
    close(weight.grad, expected_weight_EFD, 10 * tolerance)


@pytest.mark.parametrize("provider", GROUPED)
def test_grouped_operands_with_gaps_and_gradients_that_nobody_wants(provider: str):
    kernel, dtype, tolerance = load("grouped_linear", provider)
    groups, rows = Groups.of([3, 0, 6]), 10
    x_RD = normal(0, 8, rows).to(dtype).T
    weight_EFD = normal(1, 3, 8, 4).to(dtype).mT
    shifted_RD = torch.cat((normal(2, 1).to(dtype), x_RD.flatten()))[1:].view(x_RD.shape)  # at an odd address
    dense_RD, dense_EFD = x_RD.contiguous().requires_grad_(), weight_EFD.contiguous().requires_grad_()
    expected_RF = kernel(dense_RD, dense_EFD, groups)
    expected_RF.sum().backward()  # of a gradient that is one number, expanded
    for x_like, wants_x in product((x_RD, shifted_RD), (True, False)):
        x, weight = x_like.detach().requires_grad_(wants_x), weight_EFD.detach().requires_grad_(not wants_x)
        y_RF = kernel(x, weight, groups)
        close(y_RF, expected_RF.detach().double(), tolerance)
        y_RF.sum().backward()
        assert (x.grad is None, weight.grad is None) == (not wants_x, wants_x)
        wanted, expected = (x, dense_RD) if wants_x else (weight, dense_EFD)
        close(wanted.grad, expected.grad.double(), tolerance)


def test_the_operator_of_pytorch_takes_rows_of_16_bytes_only():
    assert why_not(GroupedLinearRequest(torch.bfloat16, 64, 24, 8)) is None
    assert why_not(GroupedLinearRequest(torch.float32, 4, 12, 8)) is None
    assert "multiples of 8" in str(why_not(GroupedLinearRequest(torch.bfloat16, 64, 20, 8)))
    assert "multiples of 8" in str(why_not(GroupedLinearRequest(torch.bfloat16, 4, 64, 8)))


def _products(dtype: str, forward: bool) -> Compilation:
    tiles, pointer = CUDA_LAUNCH.matmul(4 if dtype == "fp32" else 2), f"*{dtype}:16"
    near, far = ("b_inner_stride", "b_column_stride") if forward else ("b_column_stride", "b_inner_stride")
    return Compilation(
        "evocore.kernels.grouped_linear.triton_kernel:_products",
        dict.fromkeys(("a_ptr", "b_ptr", "out_ptr"), pointer)
        | {"ends_ptr": "*i32:16", "experts": "i32"}
        | dict.fromkeys(("rows", "columns", "inner", "a_stride", "b_expert_stride", far), "i32:16"),
        {
            "GROUPS": 256,
            "BLOCK_R": tiles.rows,
            "BLOCK_C": tiles.columns,
            "BLOCK_I": tiles.inner,
            "BAND": 8,
            "EVEN_C": True,
            "EVEN_I": True,
            near: 1,
        },
        tiles.warps,
        tiles.stages,
    )


def _weight_gradients(dtype: str) -> Compilation:
    tiles, pointer = CUDA_LAUNCH.matmul(4 if dtype == "fp32" else 2), f"*{dtype}:16"
    return Compilation(
        "evocore.kernels.grouped_linear.triton_kernel:_weight_gradients",
        dict.fromkeys(("grad_ptr", "x_ptr", "out_ptr"), pointer)
        | {"ends_ptr": "*i32:16", "experts": "i32"}
        | dict.fromkeys(("outputs", "inputs", "grad_stride", "x_stride"), "i32:16"),
        {
            "BLOCK_F": tiles.rows,
            "BLOCK_D": tiles.columns,
            "BLOCK_R": tiles.inner,
            "BAND": 8,
            "EVEN_F": True,
            "EVEN_D": False,
        },
        tiles.warps,
        tiles.stages,
    )


def _routed_kernel(name: str, pointers: dict[str, str], strides: Sequence[str], **constants: Any) -> Compilation:
    columns = CUDA_LAUNCH.elements
    return Compilation(
        f"evocore.kernels.moe_permute.triton_kernel:{name}",
        {"row_ptr": "*i32:16", "end_ptr": "*i32", "tokens": "i32:16", "width": "i32:16"}
        | {pointer: f"*{dtype}:16" for pointer, dtype in pointers.items()}
        | dict.fromkeys(strides, "i32:16"),
        {"TOP_K": 8, "TOKENS": 1, "COLUMNS": columns} | constants,
        CUDA_LAUNCH.warps(columns),
    )


COMPILATIONS = {
    "grouped forward, bf16": _products("bf16", forward=True),
    "grouped gradient of x, bf16": _products("bf16", forward=False),
    "grouped gradient of weight, bf16": _weight_gradients("bf16"),
    "grouped forward, fp32": _products("fp32", forward=True),
    "grouped gradient of weight, fp32": _weight_gradients("fp32"),
    "permute, bf16": _routed_kernel("_spread", {"x_ptr": "bf16", "rows_ptr": "bf16"}, ["x_stride"]),
    "gradient of permute, fp32": _routed_kernel(
        "_gather", {"rows_ptr": "fp32", "y_ptr": "fp32"}, ["rows_stride"], weights_ptr=None
    ),
    "unpermute, bf16": _routed_kernel(
        "_gather", {"rows_ptr": "bf16", "weights_ptr": "fp32", "y_ptr": "bf16"}, ["rows_stride"]
    ),
    "gradient of unpermute, bf16": _routed_kernel(
        "_unpermute_backward",
        {
            "grad_ptr": "bf16",
            "rows_ptr": "bf16",
            "weights_ptr": "fp32",
            "grad_rows_ptr": "bf16",
            "grad_weights_ptr": "fp32",
        },
        ["grad_stride", "rows_stride"],
        TOP_K_BLOCK=8,
    ),
}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Compiled]:
    return dict(zip(COMPILATIONS, compile_for_hopper(*COMPILATIONS.values()), strict=True))


@pytest.mark.parametrize("name", COMPILATIONS)
def test_a_hopper_gpu_can_hold_the_kernel(compiled: dict[str, Compiled], name: str):
    program = compiled[name]
    assert program.shared <= SHARED_LIMIT
    assert program.spills <= 32  # bytes: numbers that are read once per tile or per row
    if "grouped" in name:
        assert "cp.async.cg.shared.global" in program.ptx  # 16 bytes at a time, while the tensor cores work
        assert ("wgmma.mma_async" in program.ptx) == ("bf16" in name)
    else:
        assert "ld.global.v4" in program.ptx and "st.global.v4" in program.ptx
