"""Kernels that work piece by piece, with pieces so small that there are many seams; and what each keeps for backward.

The sizes of the pieces are module constants chosen for speed, so the ordinary grid never sees more than one or two.
"""

from __future__ import annotations

from itertools import accumulate
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from evocore.backends.cpu.device import CPUBackend
from evocore.backends.cpu.kernels import KERNELS
from evocore.kernels.attention import blocked, blocks, native
from evocore.kernels.attention.documents import Run
from evocore.kernels.attention.reference import attention as attention_reference
from evocore.kernels.cross_entropy import one_pass
from evocore.kernels.cross_entropy.reference import cross_entropy as cross_entropy_reference
from evocore.kernels.linear_cross_entropy import chunked
from evocore.kernels.linear_cross_entropy.reference import linear_cross_entropy as linear_reference
from evocore.ops.attention import CuSeqlens
from evocore.ops.kernel import Kernel
from evocore.testing.conformance import Checker, case_named, cases

LOSS_OPTIONS = st.fixed_dictionaries(
    {"label_smoothing": st.sampled_from([0.0, 0.1]), "z_loss": st.sampled_from([0.0, 1e-2])}
)


def outputs_and_gradients(function, inputs: list[Tensor], *constants, **options) -> list[Tensor]:
    """With weights on the first output that are all different."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    returned = function(*inputs, *constants, **options)
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    upstream = torch.linspace(0.5, 2, outputs[0].numel(), dtype=outputs[0].dtype).view_as(outputs[0])
    return [x.detach() for x in outputs] + list(
        torch.autograd.grad(outputs[0], inputs, upstream, materialize_grads=True)
    )


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def float64(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return generator, lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@settings(deadline=None, max_examples=40)
@given(tokens=st.integers(1, 9), vocab=st.integers(1, 7), piece=st.integers(1, 40), options=LOSS_OPTIONS)
def test_losses_do_not_depend_on_the_size_of_a_piece(tokens: int, vocab: int, piece: int, options: dict):
    generator, randn = float64(tokens)
    labels_T = torch.randint(vocab, (tokens,), generator=generator)
    labels_T[::4] = -100
    constants = (labels_T, randn(tokens).abs())
    logits, linear = [randn(tokens, vocab)], [randn(tokens, 3), randn(vocab, 3)]
    with patch.multiple(chunked, CHUNK=piece, MIN_ROWS=1), patch.object(one_pass, "WORKSPACE", piece):
        found = outputs_and_gradients(one_pass.cross_entropy, logits, *constants, **options)
        assert_same(found, outputs_and_gradients(cross_entropy_reference, logits, *constants, **options))
        found = outputs_and_gradients(chunked.linear_cross_entropy, linear, *constants, **options)
        assert_same(found, outputs_and_gradients(linear_reference, linear, *constants, **options))


@example(lengths=[(12, 0)], repeats=1, longest=5, scores=99, causal=True, window=8, softcap=None)
@example(lengths=[(9, 4)], repeats=2, longest=3, scores=99, causal=True, window=6, softcap=2.0)
@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6)), min_size=1, max_size=4),
    repeats=st.integers(1, 3),
    longest=st.integers(1, 5),
    scores=st.integers(1, 200),
    causal=st.booleans(),
    window=st.none() | st.integers(1, 9),
    softcap=st.none() | st.just(2.0),
)
def test_attention_does_not_depend_on_the_size_of_a_block(lengths, repeats, longest, scores, causal, window, softcap):
    """The second number of a document is how many keys it has more than queries; neighbours may be equal."""
    lengths = [pair for pair in lengths for _ in range(repeats)]
    q_cuts, k_cuts = [0, *accumulate(q for q, _ in lengths)], [0, *accumulate(q + more for q, more in lengths)]
    _, randn = float64(longest)
    inputs = [randn(q_cuts[-1], 4, 3), randn(k_cuts[-1], 2, 3), randn(k_cuts[-1], 2, 3)]
    options = {"q_documents": CuSeqlens.of(q_cuts), "k_documents": CuSeqlens.of(k_cuts), "causal": causal}
    options |= {"window": window if causal else None, "softcap": softcap, "scale": 0.7}
    expected = outputs_and_gradients(attention_reference, inputs, **options)
    with patch.multiple(blocks, SCORES=scores, SHORTEST=1, LONGEST=longest):
        assert_same(outputs_and_gradients(blocked.attention, inputs, **options), expected)
    if softcap is None:
        with patch.multiple(native, SHORTEST=1, LONGEST=longest):
            assert_same(outputs_and_gradients(native.attention, inputs, **options), expected)


@pytest.mark.parametrize("window", (None, 40))
def test_blocks_leave_out_what_the_mask_hides(window: int | None):
    run, terms = Run(1, 1000, 1000), blocks.Terms(True, window, None, 1.0)
    computed = sum(
        (block.rows.stop - block.rows.start) * (block.keys.stop - block.keys.start)
        for block in blocks.blocks(run, 1, 1, terms, torch.float32, torch.device("cpu"))
    )
    needed = sum(min(i, window or i) for i in range(1, 1001))
    assert needed < computed <= needed + 1000 * blocks.LONGEST


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k.op != "adamw"], ids=lambda k: f"{k.op}-{k.provider}")
def test_recomputed_in_backward_it_gives_the_same_gradients(kernel: Kernel):
    """As activation checkpointing does, which lets a backward look at what it saved only once."""
    call, function = cases(kernel.op)[0].make(torch.float32), Checker(KERNELS, CPUBackend()).load(kernel)

    def total(*inputs: Tensor) -> Tensor:
        returned = function(*inputs, *call.constants, **call.options)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        return sum(x.square().sum() for x in outputs if x.requires_grad)

    inputs = [x.requires_grad_() for x in call.inputs]
    expected = torch.autograd.grad(total(*inputs), inputs)
    found = torch.autograd.grad(checkpoint(total, *inputs, use_reentrant=False), inputs)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("op", "provider", "case", "dtype", "kept"),
    [
        ("attention", "blocked", "causal", torch.float32, 3),
        ("rms_norm", "analytic", "3x37-unit_offset-fp32_weight", torch.float32, 1),
        ("rms_norm", "analytic", "3x37-unit_offset-fp32_weight", torch.bfloat16, 1),
        ("add_rms_norm", "analytic", "3x37", torch.float32, 1),
        ("rotary", "analytic", "3-pairs-of-7", torch.float32, 0),
        ("swiglu", "analytic", "3x37", torch.float32, 2),
        ("swiglu", "analytic", "3x37", torch.bfloat16, 2),
        ("geglu", "analytic", "3x37-tanh", torch.float32, 3),
        ("geglu", "analytic", "3x37-tanh", torch.bfloat16, 2),
    ],
)
def test_no_more_activations_are_kept_than_promised(op: str, provider: str, case: str, dtype: torch.dtype, kept: int):
    (function,) = (kernel.load() for kernel in KERNELS if (kernel.op, kernel.provider) == (op, provider))
    call = case_named(op, case).make(dtype)
    least = min(x.numel() for x in call.inputs if x.shape[0] == call.inputs[0].shape[0])
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        function(*(x.requires_grad_() for x in call.inputs), *call.constants, **call.options)
    large = [x for x in saved if x.numel() >= least]
    assert len(large) == kept and all(x.dtype == dtype for x in large)
