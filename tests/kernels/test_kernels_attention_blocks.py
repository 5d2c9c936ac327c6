"""``attention_block`` as ring attention uses it: attention to blocks of keys, merged, is attention to all of them.

The oracle is ``attention``'s reference with autograd, in float64. Blocks are what a ring deals out: some documents
end before a block, some queries see none of its keys, and the blocks arrive in any order.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when it is imported

from collections.abc import Sequence
from itertools import accumulate, permutations
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evocore.kernels.attention import blocked, blocks, reference, triton_kernel
from evocore.kernels.launch import INTERPRETER
from evocore.ops.attention import AttentionBlock, CuSeqlens, merge_attention

PROVIDERS: dict[str, tuple[AttentionBlock, torch.dtype]] = {
    "reference": (reference.attention_block, torch.float64),
    "blocked": (blocked.attention_block, torch.float64),
    "triton": (triton_kernel.attention_block(INTERPRETER), torch.float32),
}
EXACTLY = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 4e-6, "atol": 4e-6}}

each_provider = pytest.mark.parametrize("provider", PROVIDERS)


def documents(lengths: Sequence[int]) -> CuSeqlens:
    return CuSeqlens.of([0, *accumulate(lengths)])


def numbers(*shapes: tuple[int, ...], seed: int = 5) -> list[Tensor]:
    """Of float64, and all float32 too."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).double() for shape in shapes]


def expected(inputs: list[Tensor], grad: Tensor, **options: Any) -> list[Tensor]:
    """The output and the gradients of the whole."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = reference.attention(*inputs, **options)
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


def assert_same(found: Sequence[Tensor], wanted: Sequence[Tensor], dtype: torch.dtype) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), **EXACTLY[dtype])


def ring(
    kernel: AttentionBlock, inputs: list[Tensor], grad: Tensor, steps: Sequence[tuple[list[slice], dict[str, Any]]]
) -> list[Tensor]:
    """Output and gradients; a step is where its keys of each document are, and how they are seen."""
    q, k, v = inputs
    taken = [torch.cat([torch.arange(len(k))[part] for part in parts]) for parts, _ in steps]
    results = [kernel.forward(q, k[at], v[at], **options) for at, (_, options) in zip(taken, steps, strict=True)]
    out, lse = results[0]
    for other in results[1:]:
        out, lse = merge_attention(out, lse, *other)
    grad_q, grad_k, grad_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for at, (_, options) in zip(taken, steps, strict=True):
        share = kernel.backward(grad, q, k[at], v[at], out, lse, **options)
        grad_q += share[0]
        grad_k[at], grad_v[at] = share[1:]
    return [out, grad_q, grad_k, grad_v]


@each_provider
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_three_blocks_in_any_order_are_the_whole(provider: str, softcap: float | None):
    """Keys of two earlier blocks are all seen, those of the third causally, as in a ring."""
    kernel, dtype = PROVIDERS[provider]
    queries = [5, 3, 0, 17]
    keys = [(4, 3, 5), (0, 2, 3), (2, 0, 0), (0, 0, 17)]  # of each document in each block
    cuts = documents([sum(block) for block in keys]).host
    fed = {"q_documents": documents(queries), "softcap": softcap, "scale": 0.6}
    inputs = numbers((25, 4, 6), (cuts[-1], 2, 6), (cuts[-1], 2, 6))
    [grad] = numbers((25, 4, 6), seed=6)
    wanted = expected(inputs, grad, k_documents=CuSeqlens.of(cuts), **fed)
    steps = []
    for block in range(3):
        ends = [(start + sum(sizes[:block]), sizes[block]) for start, sizes in zip(cuts[:-1], keys, strict=True)]
        options = {**fed, "k_documents": documents([size for _, size in ends]), "causal": block == 2}
        steps.append(([slice(start, start + size) for start, size in ends], options))
    orders = list(permutations(steps))
    for order in orders if dtype == torch.float64 else orders[3:4]:
        found = ring(kernel, [x.to(dtype) for x in inputs], grad.to(dtype), order)
        assert_same(found, wanted, dtype)


@each_provider
@pytest.mark.parametrize("options", [{"causal": True}, {"window": 3}, {"softcap": 2.0}], ids=str)
def test_queries_that_see_no_key_get_nothing_and_give_nothing(provider: str, options: dict[str, Any]):
    """Documents with more queries than keys, some with none; the other queries are as if those were not there."""
    kernel, dtype = PROVIDERS[provider]
    queries, keys = [7, 4, 3], [3, 0, 3]
    seeing = torch.tensor([4, 5, 6, 11, 12, 13])
    inputs = [x.to(dtype) for x in numbers((14, 2, 5), (6, 1, 5), (6, 1, 5))]
    [grad] = numbers((14, 2, 5), seed=6)
    fed = {"q_documents": documents(queries), "k_documents": documents(keys), **options}
    out, lse = kernel.forward(*inputs, **fed)
    grads = kernel.backward(grad.to(dtype), *inputs, out, lse, **fed)
    blind = torch.ones(14, dtype=torch.bool).index_fill(0, seeing, False)
    assert (lse[blind] == -torch.inf).all() and lse[~blind].isfinite().all()
    assert not out[blind].any() and not grads[0][blind].any()
    same = {"q_documents": documents(keys), "k_documents": documents(keys), **options}
    wanted = expected([inputs[0][seeing].double(), *(x.double() for x in inputs[1:])], grad[seeing], **same)
    assert_same([out[seeing], grads[0][seeing], *grads[1:]], wanted, dtype)


@each_provider
def test_without_a_key_at_all_everything_is_zero(provider: str):
    kernel, dtype = PROVIDERS[provider]
    q, grad = torch.ones(3, 2, 4, dtype=dtype), torch.ones(3, 2, 4, dtype=dtype)
    k = torch.ones(0, 1, 4, dtype=dtype)
    options = {"q_documents": documents([1, 2]), "k_documents": documents([0, 0]), "causal": False}
    out, lse = kernel.forward(q, k, k, **options)
    grad_q, grad_k, grad_v = kernel.backward(grad, q, k, k, out, lse, **options)
    assert not out.any() and (lse == -torch.inf).all() and not grad_q.any()
    assert grad_k.shape == grad_v.shape == (0, 1, 4)


@each_provider
def test_log_sum_exp_is_that_of_the_scores(provider: str):
    kernel, dtype = PROVIDERS[provider]
    q, k = numbers((3, 2, 4), (3, 1, 4))
    tokens = documents([3])
    scores = 0.5 * torch.einsum("tnh,sh->tns", q, k[:, 0])
    wanted = scores.masked_fill(torch.ones(3, 3).triu(1).bool()[:, None], -torch.inf).logsumexp(-1)
    _, lse = kernel.forward(q.to(dtype), k.to(dtype), k.to(dtype), q_documents=tokens, k_documents=tokens)
    assert lse.dtype == dtype and lse.shape == (3, 2)
    assert_same([lse], [wanted], dtype)


def test_in_low_precision_the_log_sum_exp_is_float32():
    x, tokens = torch.ones(2, 1, 4, dtype=torch.bfloat16), documents([2])
    for kernel in (reference.attention_block, blocked.attention_block):
        out, lse = kernel.forward(x, x, x, q_documents=tokens, k_documents=tokens)
        assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
        gradients = kernel.backward(x, x, x, x, out, lse, q_documents=tokens, k_documents=tokens)
        assert [gradient.dtype for gradient in gradients] == [torch.bfloat16] * 3


@example(lengths=[(4, 0), (0, 3), (6, 2)], longest=2, scores=3, options={}, group=2)
@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=4),
    longest=st.integers(1, 5),
    scores=st.integers(1, 200),
    options=st.fixed_dictionaries(
        {},
        optional={
            "causal": st.just(False),
            "window": st.integers(1, 9),
            "softcap": st.just(2.0),
            "scale": st.sampled_from([0.7, -0.7]),
        },
    ),
    group=st.integers(1, 2),
)
def test_blocked_is_the_reference_whatever_the_size_of_a_block(
    lengths: list[tuple[int, int]], longest: int, scores: int, options: dict[str, Any], group: int
):
    """Of any numbers of queries and keys, and with statistics of a row that has keys elsewhere."""
    fed = {"q_documents": documents([m for m, _ in lengths]), "k_documents": documents([n for _, n in lengths])}
    tokens, keys = fed["q_documents"].total, fed["k_documents"].total
    q, grad, out = numbers(*[(tokens, 2 * group, 3)] * 3)
    k, v = numbers(*[(keys, 2, 3)] * 2, seed=8)
    with patch.multiple(blocks, SCORES=scores, SHORTEST=1, LONGEST=longest):
        found = blocked.attention_block.forward(q, k, v, **fed, **options)
        wanted = reference.attention_block.forward(q, k, v, **fed, **options)
        assert_same(found, wanted, torch.float64)
        lse = torch.logaddexp(wanted[1], torch.zeros(()).double())
        found = blocked.attention_block.backward(grad, q, k, v, out, lse, **fed, **options)
    wanted = reference.attention_block.backward(grad, q, k, v, out, lse, **fed, **options)
    assert_same(found, wanted, torch.float64)


def test_nothing_given_is_changed():
    tokens = documents([3, 2])
    q, k, v, grad = numbers((5, 2, 4), (5, 1, 4), (5, 1, 4), (5, 2, 4))
    for kernel, dtype in PROVIDERS.values():
        given = [x.to(dtype, copy=True) for x in (q, k, v)]
        out, lse = kernel.forward(*given, q_documents=tokens, k_documents=tokens)
        fed = [grad.to(dtype, copy=True), *given, out, lse]
        before = [x.clone() for x in fed]
        kernel.backward(*fed, q_documents=tokens, k_documents=tokens)
        assert all(torch.equal(*pair) for pair in zip(fed, before, strict=True))
