"""The references against formulas that share no code with them, and numeric gradients of the other providers."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evocore.backends.cpu.device import CPUBackend
from evocore.backends.cpu.kernels import KERNELS
from evocore.kernels.adamw.reference import adamw
from evocore.kernels.attention.reference import attention
from evocore.kernels.cross_entropy.reference import cross_entropy
from evocore.kernels.geglu.reference import geglu
from evocore.kernels.layer_norm.reference import layer_norm
from evocore.kernels.linear_cross_entropy.reference import linear_cross_entropy
from evocore.kernels.rms_norm.reference import add_rms_norm, rms_norm
from evocore.kernels.rotary.reference import rotary
from evocore.kernels.swiglu.reference import swiglu
from evocore.ops.attention import CuSeqlens
from evocore.ops.kernel import Kernel
from evocore.testing.conformance import Case, Checker, case_named, cases

CHECKER = Checker(KERNELS, CPUBackend())


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.fixture
def randn():
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def dense_attention(
    q_TNH, k_SKH, v_SKH, *, q_documents, k_documents, causal=True, window=None, softcap=None, scale=None
):
    """All pairs of tokens at once, with one mask made pair by pair."""
    seen = torch.zeros(len(q_TNH), len(k_SKH), dtype=torch.bool)
    for (q_start, q_end), (k_start, k_end) in zip(
        pairwise(q_documents.host), pairwise(k_documents.host), strict=True
    ):
        for i in range(q_end - q_start):
            for j in range(k_end - k_start):
                last = i + (k_end - k_start) - (q_end - q_start)
                allowed = not causal or (j <= last and (window is None or j > last - window))
                seen[q_start + i, k_start + j] = allowed
    out = torch.zeros_like(q_TNH)
    for head in range(q_TNH.shape[1]):
        kv_head = head // (q_TNH.shape[1] // k_SKH.shape[1])
        scores = q_TNH[:, head] @ k_SKH[:, kv_head].T * (scale or 1 / math.sqrt(q_TNH.shape[2]))
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        weights = torch.where(seen, scores.exp(), 0)
        total = weights.sum(-1, keepdim=True)
        out[:, head] = weights @ v_SKH[:, kv_head] / torch.where(total == 0, 1, total)
    return out


@pytest.mark.parametrize("case", cases("attention"), ids=str)
def test_attention_is_a_masked_softmax_over_all_pairs(case: Case):
    example = case.make(torch.float64)
    assert_close(attention(*example.inputs, **example.options), dense_attention(*example.inputs, **example.options))


def test_rms_norm_and_its_offset(randn):
    x_TD, weight_D = randn(5, 12), randn(12)
    assert_close(rms_norm(x_TD, weight_D, eps=1e-3), F.rms_norm(x_TD, (12,), weight_D, 1e-3))
    assert_close(rms_norm(x_TD, weight_D, eps=1e-3, unit_offset=True), F.rms_norm(x_TD, (12,), weight_D + 1, 1e-3))


def test_add_rms_norm_is_the_sum_and_its_norm(randn):
    x_TD, residual_TD, weight_D = randn(5, 12), randn(5, 12), randn(12)
    y_TD, s_TD = add_rms_norm(x_TD, residual_TD, weight_D, eps=1e-3)
    assert_close(s_TD, x_TD + residual_TD)
    assert_close(y_TD, F.rms_norm(x_TD + residual_TD, (12,), weight_D, 1e-3))


def test_layer_norm_with_and_without_bias(randn):
    x_TD, weight_D, bias_D = randn(5, 12) + 3, randn(12), randn(12)
    for bias in (None, bias_D):
        assert_close(layer_norm(x_TD, weight_D, bias, eps=1e-3), F.layer_norm(x_TD, (12,), weight_D, bias, 1e-3))


@pytest.mark.parametrize("interleaved", (False, True))
@pytest.mark.parametrize(("width", "pairs"), ((8, 4), (8, 3), (7, 2)))
def test_rotary_is_a_complex_product(randn, interleaved: bool, width: int, pairs: int):
    x_TNH, angles_TP = randn(5, 3, width), randn(5, pairs)
    first, second = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2)) if interleaved else (
        slice(0, pairs),
        slice(pairs, 2 * pairs),
    )  # fmt: skip
    turned = torch.complex(x_TNH[..., first], x_TNH[..., second]) * torch.exp(1j * angles_TP)[:, None]
    expected_TNH = x_TNH.clone()
    expected_TNH[..., first], expected_TNH[..., second] = turned.real, turned.imag
    assert_close(rotary(x_TNH, angles_TP.cos(), angles_TP.sin(), interleaved=interleaved), expected_TNH)


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 5),
    heads=st.integers(1, 3),
    pairs=st.integers(1, 6),
    rest=st.integers(0, 3),
    interleaved=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_rotary_keeps_norms(tokens: int, heads: int, pairs: int, rest: int, interleaved: bool, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x_TNH = torch.randn(tokens, heads, 2 * pairs + rest, generator=generator, dtype=torch.float64)
    angles_TP = 100 * torch.randn(tokens, pairs, generator=generator, dtype=torch.float64)
    for kernel in _in_float64("rotary"):
        out_TNH = kernel.load()(x_TNH, angles_TP.cos(), angles_TP.sin(), interleaved=interleaved)
        assert_close(out_TNH.norm(dim=-1), x_TNH.norm(dim=-1))


def test_gated_units(randn):
    gate_TF, up_TF = 3 * randn(5, 12), randn(5, 12)
    assert_close(swiglu(gate_TF, up_TF), F.silu(gate_TF) * up_TF)
    assert_close(geglu(gate_TF, up_TF), F.gelu(gate_TF, approximate="tanh") * up_TF)
    assert_close(geglu(gate_TF, up_TF, approximate="none"), F.gelu(gate_TF) * up_TF)


@pytest.mark.parametrize("smoothing", (0.0, 0.15))
def test_cross_entropy_with_ignored_labels_weights_and_z_loss(randn, smoothing: float):
    logits_TV, labels_T, weights_T = 3 * randn(6, 9), torch.tensor([0, -100, 8, 3, -100, 3]), randn(6).abs()
    expected_T = F.cross_entropy(logits_TV, labels_T, reduction="none", label_smoothing=smoothing)
    plain = cross_entropy(logits_TV, labels_T, label_smoothing=smoothing)
    assert_close(plain.loss_T, expected_T)
    assert_close(plain.total, expected_T.sum())
    assert_close(
        cross_entropy(logits_TV, labels_T, weights_T, label_smoothing=smoothing).total, expected_T @ weights_T
    )
    assert plain.loss_T[1] == plain.loss_T[4] == 0
    with_z = cross_entropy(logits_TV, labels_T, weights_T, label_smoothing=smoothing, z_loss=0.01)
    z_T = 0.01 * logits_TV.exp().sum(-1).log() ** 2 * torch.tensor([1, 0, 1, 1, 0, 1])
    assert_close(with_z.loss_T, expected_T + z_T)
    assert_close(with_z.total, (expected_T + z_T) @ weights_T)


def test_cross_entropy_ignores_the_index_it_is_told(randn):
    logits_TV, labels_T = randn(4, 5), torch.tensor([2, 4, 2, 0])
    expected_T = F.cross_entropy(logits_TV, labels_T, reduction="none", ignore_index=2)
    assert_close(cross_entropy(logits_TV, labels_T, ignore_index=2).loss_T, expected_T)


def test_cross_entropy_counts_what_is_right():
    logits_TV = torch.tensor([[2.0, 1.0], [2.0, 1.0], [1.0, 2.0], [1.0, 2.0]])
    labels_T = torch.tensor([0, 1, 1, -100])
    assert cross_entropy(logits_TV, labels_T).correct_T.tolist() == [True, False, True, False]


def test_linear_cross_entropy_is_the_loss_of_the_logits(randn):
    hidden_TD, weight_VD, labels_T = randn(6, 4), randn(9, 4), torch.tensor([0, -100, 8, 3, 1, 3])
    options = {"label_smoothing": 0.1, "z_loss": 0.01}
    expected = cross_entropy(hidden_TD @ weight_VD.T, labels_T, **options)
    for found, value in zip(linear_cross_entropy(hidden_TD, weight_VD, labels_T, **options), expected, strict=True):
        torch.testing.assert_close(found, value)
    unsmoothed_T = F.cross_entropy(hidden_TD @ weight_VD.T, labels_T, reduction="none")
    assert_close(linear_cross_entropy(hidden_TD, weight_VD, labels_T).loss_T, unsmoothed_T)


def test_adamw_is_that_of_pytorch():
    params, gradients = case_named("adamw", "shapes").make(torch.float64).constants
    theirs = [torch.nn.Parameter(x.clone()) for x in params]
    options = {"eps": 1e-6, "weight_decay": 0.1}
    optimizer = torch.optim.AdamW(theirs, lr=0.05, betas=(0.8, 0.95), foreach=False, **options)
    exp_avgs, exp_avg_sqs = ([torch.zeros_like(x) for x in params] for _ in range(2))
    for step, grads in enumerate(gradients, 1):
        for parameter, gradient in zip(theirs, grads, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        adamw(params, grads, exp_avgs, exp_avg_sqs, step=step, lr=0.05, beta1=0.8, beta2=0.95, **options)
    for ours, expected, m, v in zip(params, theirs, exp_avgs, exp_avg_sqs, strict=True):
        assert_close(ours, expected.detach())
        assert_close(m, optimizer.state[expected]["exp_avg"])
        assert_close(v, optimizer.state[expected]["exp_avg_sq"])


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4)), min_size=1, max_size=5),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_packed_documents_do_not_see_each_other(
    lengths: list[tuple[int, int]], causal: bool, window: int | None, seed: int
):
    """Of every provider; the second number of a document is how many keys it has more than queries."""
    generator = torch.Generator().manual_seed(seed)
    q_lengths, k_lengths = [queries for queries, _ in lengths], [sum(pair) for pair in lengths]
    q_TNH = torch.randn(sum(q_lengths), 4, 4, generator=generator, dtype=torch.float64)
    k_SKH, v_SKH = torch.randn(2, sum(k_lengths), 2, 4, generator=generator, dtype=torch.float64)
    options = {"causal": causal, "window": window if causal else None}
    q_cuts, k_cuts = [0, *accumulate(q_lengths)], [0, *accumulate(k_lengths)]
    for kernel in _in_float64("attention"):
        function = kernel.load()
        packed_TNH = function(
            q_TNH, k_SKH, v_SKH, q_documents=CuSeqlens.of(q_cuts), k_documents=CuSeqlens.of(k_cuts), **options
        )
        for (start, end), (k_start, k_end) in zip(pairwise(q_cuts), pairwise(k_cuts), strict=True):
            alone_TNH = function(
                q_TNH[start:end],
                k_SKH[k_start:k_end],
                v_SKH[k_start:k_end],
                q_documents=CuSeqlens.of([0, end - start]),
                k_documents=CuSeqlens.of([0, k_end - k_start]),
                **options,
            )
            assert_close(packed_TNH[start:end], alone_TNH)


def _in_float64(op: str) -> list[Kernel]:
    return [kernel for kernel in KERNELS if kernel.op == op and torch.float64 in kernel.dtypes]


def _numeric() -> list[object]:
    return [
        pytest.param(kernel, case, id=f"{kernel.op}-{kernel.provider}-{case}")
        for kernel in KERNELS
        if kernel.op != "adamw" and kernel.provider != "reference" and torch.float64 in kernel.dtypes
        for case in cases(kernel.op, torch.float64)
        if kernel.supports(case.make(torch.float64).request) is None
    ]


@pytest.mark.parametrize(("kernel", "case"), _numeric())
def test_gradients_are_those_of_finite_differences(kernel: Kernel, case: Case):
    example, function = case.make(torch.float64), CHECKER.load(kernel)

    def differentiable(*inputs: Tensor) -> tuple[Tensor, ...]:
        returned = function(*inputs, *example.constants, **example.options)
        return tuple(x for x in (returned if isinstance(returned, tuple) else (returned,)) if x.requires_grad)

    inputs = [x.requires_grad_() for x in example.inputs]
    assert torch.autograd.gradcheck(differentiable, inputs, fast_mode=True)
