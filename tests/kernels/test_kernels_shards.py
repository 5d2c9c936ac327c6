"""``cross_entropy_shard``: whatever way the vocabulary is cut, the pieces make up the whole.

Each provider's merged statistics and gradients are held against ``cross_entropy`` of all logits in float64.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when it is imported

from dataclasses import replace
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evocore.kernels.cross_entropy import one_pass, reference, triton_kernel
from evocore.kernels.launch import INTERPRETER
from evocore.ops.cross_entropy import CrossEntropyShard, ShardStatistics

TRITON = triton_kernel.cross_entropy_shard(replace(INTERPRETER, elements=128))
"""Tiles of 256."""
PROVIDERS = {
    "reference": reference.cross_entropy_shard,
    "one_pass": one_pass.cross_entropy_shard,
    "triton": TRITON,
}
EVERY = pytest.mark.parametrize("shard", PROVIDERS.values(), ids=PROVIDERS.keys())
CUTS = ([0, 9], [0, 300], [0, 4, 9], [0, 256, 300], [0, 1, 257, 900])


def make(tokens: int, vocab: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels of which every fourth is ignored, and weights."""
    generator = torch.Generator().manual_seed(tokens + vocab)
    logits_TV = 3 * torch.randn(tokens, vocab, generator=generator, dtype=torch.float64).to(dtype)
    labels_T = torch.randint(vocab, (tokens,), generator=generator)
    labels_T[3::4] = -100
    return logits_TV, labels_T, torch.rand(tokens, generator=generator)


def merged(shard: CrossEntropyShard, logits_TV: Tensor, labels_T: Tensor, cuts: list[int]) -> ShardStatistics:
    pieces = [shard.forward(logits_TV[:, start:end], labels_T - start) for start, end in pairwise(cuts)]
    lse_PT, label_PT, sum_PT, largest_PT = map(torch.stack, zip(*pieces, strict=True))
    return ShardStatistics(lse_PT.logsumexp(0), label_PT.sum(0), sum_PT.sum(0), largest_PT.amax(0))


def check_pieces(shard: CrossEntropyShard, tokens: int, cuts: list[int], dtype: torch.dtype, options: dict) -> None:
    logits_TV, labels_T, weights_T = make(tokens, cuts[-1], dtype)
    exact_TV = logits_TV.to(torch.float64, copy=True).requires_grad_()
    whole = reference.cross_entropy(exact_TV, labels_T, weights_T.double(), **options)
    (expected_TV,) = torch.autograd.grad(1.5 * whole.total, exact_TV)
    lse_T, label_T, sum_T, largest_T = merged(shard, logits_TV, labels_T, cuts)
    smoothing, counted_T = options["label_smoothing"], labels_T >= 0
    loss_T = (1 - smoothing) * (lse_T - label_T) + smoothing * (lse_T - sum_T / cuts[-1])
    loss_T = (loss_T + options["z_loss"] * lse_T.square()).where(counted_T, 0)
    accuracy = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(loss_T.double(), whole.loss_T, **accuracy)
    assert torch.equal(counted_T & (label_T >= largest_T), whole.correct_T)
    scale_T = 1.5 * weights_T.to(lse_T.dtype).where(counted_T, 0)
    pieces = [
        shard.backward(logits_TV[:, start:end], labels_T - start, lse_T, scale_T, vocab=cuts[-1], **options)
        for start, end in pairwise(cuts)
    ]
    assert all(piece.is_contiguous() and piece.dtype == dtype for piece in pieces)
    torch.testing.assert_close(torch.cat(pieces, 1).double(), expected_TV, **accuracy)


@EVERY
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize(
    "options", ({"label_smoothing": 0.0, "z_loss": 0.0}, {"label_smoothing": 0.2, "z_loss": 0.01})
)
def test_pieces_make_up_the_whole(shard: CrossEntropyShard, cuts: list[int], options: dict):
    check_pieces(shard, 7, cuts, torch.float32, options)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(0, 9),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    workspace=st.integers(1, 40),
    smoothing=st.sampled_from([0.0, 0.1]),
)
def test_one_pass_in_batches_of_any_size(tokens: int, sizes: list[int], workspace: int, smoothing: float):
    cuts = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    with patch.object(one_pass, "WORKSPACE", workspace):
        check_pieces(
            PROVIDERS["one_pass"], tokens, cuts, torch.float64, {"label_smoothing": smoothing, "z_loss": 0.01}
        )


@EVERY
def test_labels_of_other_shards_count_for_nothing_here(shard: CrossEntropyShard):
    logits_TV, _, scale_T = make(4, 9)
    labels_T = torch.tensor([-1, 9, -(2**40), 2**40])
    statistics = shard.forward(logits_TV, labels_T)
    assert statistics.label_T.tolist() == [0, 0, 0, 0]
    found_TV = shard.backward(logits_TV, labels_T, statistics.lse_T, scale_T, vocab=9)
    torch.testing.assert_close(found_TV, scale_T[:, None] * logits_TV.softmax(-1))


@EVERY
def test_rows_without_weight_have_no_gradient(shard: CrossEntropyShard):
    logits_TV, labels_T, _ = make(5, 9)
    options = {"vocab": 18, "label_smoothing": 0.1, "z_loss": 0.1}
    found_TV = shard.backward(logits_TV, labels_T, logits_TV.logsumexp(-1), torch.zeros(5), **options)
    assert torch.equal(found_TV, torch.zeros(5, 9))


@EVERY
def test_no_tokens(shard: CrossEntropyShard):
    logits_TV, labels_T, scale_T = make(0, 9)
    statistics = shard.forward(logits_TV, labels_T)
    assert [x.shape for x in statistics] == [(0,)] * 4
    assert shard.backward(logits_TV, labels_T, statistics.lse_T, scale_T, vocab=9).shape == (0, 9)


@EVERY
def test_inputs_may_be_views_and_stay_as_they_are(shard: CrossEntropyShard):
    stored_TV, labels_T, scale_T = make(6, 640)
    before_TV, labels_T = stored_TV.clone(), torch.stack((labels_T % 40, labels_T), 1)[:, 0]
    for view_TV in (stored_TV[:, 5:45], stored_TV[:, ::16], stored_TV.view(640, 6)[:40].T):
        plain_TV = view_TV.clone(memory_format=torch.contiguous_format)
        statistics, expected = shard.forward(view_TV, labels_T), shard.forward(plain_TV, labels_T)
        torch.testing.assert_close(tuple(statistics), tuple(expected))
        found_TV = shard.backward(view_TV, labels_T, statistics.lse_T, scale_T, vocab=40)
        assert found_TV.is_contiguous()
        expected_TV = shard.backward(plain_TV, labels_T, statistics.lse_T, scale_T, vocab=40)
        torch.testing.assert_close(found_TV, expected_TV)
    assert torch.equal(stored_TV, before_TV)


@EVERY
@pytest.mark.parametrize("size", (1e4, -1e4))
def test_large_logits_do_not_overflow(shard: CrossEntropyShard, size: float):
    logits_TV = torch.tensor([[0.0, 0.0, -20000.0], [1.0, -20000.0, 0.0]]) + size
    statistics = shard.forward(logits_TV, torch.tensor([0, 0]))
    exact_T = logits_TV.double().logsumexp(-1).float()
    torch.testing.assert_close(statistics.lse_T, exact_T, rtol=2e-7, atol=0)
    assert statistics.label_T.tolist() == [size, size + 1]
    found_TV = shard.backward(logits_TV, torch.tensor([0, 0]), exact_T, torch.ones(2), vocab=3)
    expected_TV = torch.tensor([[-0.5, 0.5, 0.0], [-0.268941, 0.0, 0.268941]])
    torch.testing.assert_close(found_TV, expected_TV, rtol=0, atol=2e-3)  # logits of 1e4 are apart by 1e-3 at least


@EVERY
def test_a_shard_of_padding_adds_nothing(shard: CrossEntropyShard):
    """Words that only fill up the vocabulary may have logits of minus infinity."""
    logits_TV, labels_T, scale_T = make(3, 5)
    padding_TV = torch.full((3, 5), float("-inf"))
    statistics = shard.forward(padding_TV, labels_T - 5)
    assert all(x.tolist() == [float("-inf")] * 3 for x in (statistics.lse_T, statistics.largest_T))
    padded = merged(shard, torch.cat((logits_TV, padding_TV), 1), labels_T, [0, 5, 10])
    torch.testing.assert_close(padded.lse_T, logits_TV.logsumexp(-1))
    found_TV = shard.backward(padding_TV, labels_T - 5, padded.lse_T, scale_T, vocab=5)
    assert torch.equal(found_TV, torch.zeros(3, 5))


@EVERY
@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_low_precision_is_computed_in_float32(shard: CrossEntropyShard, dtype: torch.dtype):
    if dtype == torch.bfloat16 and shard is TRITON:
        pytest.skip("Triton's interpreter truncates bfloat16, a device rounds")
    logits_TV, labels_T, scale_T = make(5, 300, dtype)
    statistics, exact = shard.forward(logits_TV, labels_T), shard.forward(logits_TV.float(), labels_T)
    for found, expected in zip(statistics, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    found_TV = shard.backward(logits_TV, labels_T, statistics.lse_T, scale_T, vocab=300)
    expected_TV = shard.backward(logits_TV.float(), labels_T, statistics.lse_T, scale_T, vocab=300)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found_TV, expected_TV.to(dtype), rtol=eps, atol=1e-7)
