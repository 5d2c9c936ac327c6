"""Triton's losses: seams between tiles, programs and chunks, what they hold in memory, what a GPU's compiler says.

What they compute is held against the float64 reference; the grid of cases that every kernel must serve is elsewhere.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton decides when it is imported

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton_compile import SHARED_LIMIT, compile_for_hopper, launches_of

from evocore.backends.cuda.launch import CUDA_LAUNCH
from evocore.kernels.cross_entropy import reference as loss_reference
from evocore.kernels.cross_entropy import triton_kernel as loss_triton
from evocore.kernels.launch import INTERPRETER
from evocore.kernels.linear_cross_entropy import gradient_sum
from evocore.kernels.linear_cross_entropy import reference as linear_reference
from evocore.kernels.linear_cross_entropy import triton_kernel as linear_triton
from evocore.kernels.linear_cross_entropy.gradient_sum import GradientSum

LAUNCH = replace(INTERPRETER, elements=128)
"""Tiles of 256."""
cross_entropy = loss_triton.cross_entropy(LAUNCH)
linear_cross_entropy = linear_triton.linear_cross_entropy(LAUNCH)
OPTIONS = ({}, {"label_smoothing": 0.2, "z_loss": 0.01, "ignore_index": 3})
HOPPER = replace(CUDA_LAUNCH, units=lambda device: 132)
FORWARD, BACKWARD = "evocore.kernels.cross_entropy.triton_forward", "evocore.kernels.cross_entropy.triton_backward"


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_labels(tokens: int, vocab: int, ignore_index: int = -100) -> Tensor:
    labels_T = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(vocab))
    labels_T[2::3] = ignore_index
    return labels_T


def differentiated(
    function: Callable[..., Any], inputs: list[Tensor], *constants: Any, **options: Any
) -> list[Tensor]:
    """``TokenLoss`` and the gradients of 1.5 times the total."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    returned = function(*inputs, *constants, **options)
    return [x.detach() for x in returned] + list(torch.autograd.grad(1.5 * returned.total, inputs))


def check(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: list[Tensor],
    labels_T: Tensor,
    **options: Any,
) -> None:
    """Against float64, to the accuracy of the inputs' dtype."""
    weights_T = randn(7, len(labels_T)).abs()
    exact = differentiated(reference, [x.double() for x in inputs], labels_T, weights_T, **options)
    found = differentiated(function, inputs, labels_T, weights_T.float(), **options)
    eps = torch.finfo(inputs[0].dtype).eps
    for ours, truth in zip(found, exact, strict=True):
        if truth.dtype == torch.bool:
            assert torch.equal(ours, truth)
        else:
            torch.testing.assert_close(ours.double(), truth, rtol=0, atol=32 * eps * max(1, float(truth.abs().max())))


@pytest.mark.parametrize("vocab", (1, 5, 256, 300, 900))
@pytest.mark.parametrize("options", OPTIONS, ids=("plain", "everything"))
def test_rows_of_any_length(vocab: int, options: dict):
    labels_T = make_labels(7, vocab, options.get("ignore_index", -100))
    check(cross_entropy, loss_reference.cross_entropy, [3 * randn(0, 7, vocab).float()], labels_T, **options)


def test_the_gradient_has_the_dtype_of_the_logits():
    check(cross_entropy, loss_reference.cross_entropy, [3 * randn(0, 7, 300).half()], make_labels(7, 300))


def test_no_row_counts():
    labels_T = torch.full((3,), -100)
    total, loss_T, correct_T, grad_TV = differentiated(cross_entropy, [randn(0, 3, 5).float()], labels_T)
    assert total == 0 and loss_T.tolist() == [0, 0, 0] and not correct_T.any() and not grad_TV.any()


def test_ignored_rows_are_not_even_read():
    logits_TV = randn(0, 3, 5).float()
    logits_TV[1] = float("nan")
    total, loss_T, _, grad_TV = differentiated(cross_entropy, [logits_TV], torch.tensor([2, -100, 4]))
    assert total.isfinite() and loss_T[1] == 0 and grad_TV.isfinite().all() and not grad_TV[1].any()


def test_a_label_that_is_no_word_spoils_the_loss():
    found = cross_entropy(randn(0, 3, 5).float(), torch.tensor([5, -1, 4]))
    assert found.loss_T.isnan().tolist() == [True, True, False] and found.total.isnan()


def test_equally_large_logits_are_all_correct():
    logits_TV = torch.tensor([[1.0, 2.0, 2.0]] * 3)
    assert cross_entropy(logits_TV, torch.tensor([0, 1, 2])).correct_T.tolist() == [False, True, True]


def test_large_logits_do_not_overflow():
    logits_TV = torch.tensor([[1e4, 1e4, -1e4], [-1e4, -1e4, -1e4]])
    _, loss_T, _, grad_TV = differentiated(cross_entropy, [logits_TV], torch.tensor([0, 2]))
    torch.testing.assert_close(loss_T, torch.tensor([2.0, 3.0]).log())
    expected_TV = 1.5 * torch.tensor([[-1 / 2, 1 / 2, 0], [1 / 3, 1 / 3, -2 / 3]])
    torch.testing.assert_close(grad_TV, expected_TV, rtol=0, atol=2e-3)  # numbers of 1e4 are 1e-3 apart


def test_logits_and_labels_may_be_views():
    stored_TV, labels_T = 3 * randn(0, 6, 640).float(), torch.stack((make_labels(6, 40),) * 2, 1)[:, 0]
    for view_TV in (
        stored_TV[:, 5:45],
        stored_TV[:, ::16],
        stored_TV.view(640, 6)[:40].T,
        stored_TV[:1].expand(6, 640),
    ):
        logits_TV = view_TV.requires_grad_()
        plain_TV = view_TV.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        (found_TV,) = torch.autograd.grad(cross_entropy(logits_TV, labels_T).total, logits_TV)
        (expected_TV,) = torch.autograd.grad(cross_entropy(plain_TV, labels_T).total, plain_TV)
        assert torch.equal(found_TV, expected_TV)


def test_nothing_of_the_size_of_the_logits_is_kept_but_the_logits():
    kept: list[Tensor] = []
    logits_TV = randn(0, 7, 300).half().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        cross_entropy(logits_TV, make_labels(7, 300))
    large = [x for x in kept if x.numel() >= logits_TV.numel()]
    assert [x.data_ptr() for x in large] == [logits_TV.data_ptr()]


# With the output head


@settings(deadline=None, max_examples=10)
@given(
    tokens=st.integers(1, 12),
    width=st.integers(1, 5),
    vocab=st.integers(1, 40),
    rows=st.integers(1, 5),
    slab=st.just(9),
)
def test_chunks_make_up_the_whole(tokens: int, width: int, vocab: int, rows: int, slab: int):
    inputs = [randn(0, tokens, width).float(), randn(1, vocab, width).float()]
    with patch.object(linear_triton, "ROWS", rows), patch.object(gradient_sum, "SLAB", slab):
        labels_T = make_labels(tokens, vocab, 3)
        check(linear_cross_entropy, linear_reference.linear_cross_entropy, inputs, labels_T, **OPTIONS[1])


def test_chunks_of_low_precision():
    inputs = [randn(0, 24, 8).half(), randn(1, 300, 8).half()]
    with patch.object(linear_triton, "ROWS", 5):
        check(linear_cross_entropy, linear_reference.linear_cross_entropy, inputs, make_labels(24, 300))


@given(tokens=st.integers(0, 300_000), vocab=st.integers(1, 300_000))
def test_chunks_are_several_and_short(tokens: int, vocab: int):
    rows = linear_triton.chunk_rows(tokens, vocab)
    assert 1 <= rows < max(tokens, 2) and rows <= max(2048, tokens / 16) and rows * vocab <= max(2048 * vocab, 2**28)
    assert rows > 1024 or -(-tokens // rows) <= 2  # chunks are not shorter than they must be


def test_the_total_can_be_differentiated_once():
    hidden_TD, weight_VD = randn(0, 4, 3).float().requires_grad_(), randn(1, 9, 3).float()
    total = linear_cross_entropy(hidden_TD, weight_VD, make_labels(4, 9)).total
    torch.autograd.grad(total, hidden_TD, retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        torch.autograd.grad(total, hidden_TD)


def test_weights_too_small_for_float16_do_not_lose_its_gradients():
    """As with a loss scale: the weight of a token among millions, and a large incoming gradient."""
    inputs, labels_T = [randn(0, 6, 4).half(), randn(1, 40, 4).half()], make_labels(6, 40)
    small_T = torch.linspace(1, 2, 6) * 2.0**-22

    def scaled(function: Callable[..., Any], inputs: list[Tensor]) -> tuple[Tensor, ...]:
        inputs = [x.detach().requires_grad_() for x in inputs]
        return torch.autograd.grad(2.0**22 * function(*inputs, labels_T, small_T.to(inputs[0].dtype)).total, inputs)

    def ours(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, weights_T: Tensor) -> Any:
        return linear_cross_entropy(hidden_TD, weight_VD, labels_T, small_T)

    exact = scaled(linear_reference.linear_cross_entropy, [x.double() for x in inputs])
    for found, truth in zip(scaled(ours, inputs), exact, strict=True):
        torch.testing.assert_close(found.double(), truth, rtol=0, atol=1e-2 * float(truth.abs().max()))


class _Recorder(TorchDispatchMode):
    """What the operators called inside it allocate and multiply.

    Attributes:
        largest: elements of the largest tensor of numbers (not bytes, as the interpreter's) that one gave back.
        products: multiplications of all matrix products.
        held, peak: bytes of all storages that came into being and are still there, and the most there ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = self.held = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):  # made outside
            if isinstance(x, Tensor):
                self.known.add(x.untyped_storage())
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel() if x.is_floating_point() else 0)
                self.watch(x.untyped_storage())
        if "mm" in str(func.overloadpacket):
            a, b = [x for x in args if isinstance(x, Tensor)][-2:]
            self.products += a.numel() * b.shape[-1]
        return out

    def watch(self, storage: Any) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self.forget, storage.nbytes())

    def forget(self, nbytes: int) -> None:
        self.held -= nbytes


def record(
    function: Callable[..., Any],
    sizes: tuple[int, int, int],
    *,
    wants: tuple[bool, bool] = (True, True),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> tuple[_Recorder, int]:
    """What was recorded, and the bytes of the gradients."""
    tokens, width, vocab = sizes
    hidden_TD = torch.randn(tokens, width, device=device, dtype=dtype).requires_grad_(wants[0])
    weight_VD = torch.randn(vocab, width, device=device, dtype=dtype).requires_grad_(wants[1])
    labels_T = torch.zeros(tokens, dtype=torch.int64, device=device)
    with _Recorder() as recorder:
        total = function(hidden_TD, weight_VD, labels_T, label_smoothing=0.1, z_loss=1e-3).total
        if total.requires_grad:
            total.backward()
    return recorder, sum(x.grad.nbytes for x in (hidden_TD, weight_VD) if x.grad is not None)


def test_there_are_never_as_many_logits_as_tokens_times_words():
    sizes = 40, 4, 600
    recorder, _ = record(linear_reference.linear_cross_entropy, sizes)
    assert recorder.largest == 40 * 600
    recorder, _ = record(linear_cross_entropy, sizes)
    assert recorder.largest <= 40 * 600 / 2


def test_only_the_gradients_that_are_wanted_are_computed():
    sizes = 24, 4, 300
    once = 24 * 4 * 300
    with torch.no_grad():
        assert record(linear_cross_entropy, sizes)[0].products == once
    for wants, products in (((False, False), 1), ((True, False), 2), ((False, True), 2), ((True, True), 3)):
        assert record(linear_cross_entropy, sizes, wants=wants)[0].products == products * once


@pytest.mark.parametrize("width", (2048, 4096))
def test_memory_is_a_tenth_of_what_the_plain_layers_take(width: int):
    """Tensors of the meta device have sizes only; the kernels, which write to what they are given, stay out."""
    sizes = 16384, width, 131072
    ours = linear_triton.linear_cross_entropy(HOPPER)
    more = {"dtype": torch.bfloat16, "device": "meta"}
    plain, returned = record(linear_reference.linear_cross_entropy, sizes, **more)
    assert plain.peak - returned > 20 * 2**30
    kernels = (f"{FORWARD}:_evaluate", f"{BACKWARD}:_differentiate", f"{linear_triton.__name__}:_scale_in_place")
    found: list[_Recorder] = []
    launches_of(*kernels, by=lambda: found.append(record(ours, sizes, **more)[0]))
    logits, half_the_sum = 0.5, width / 4096
    assert found[0].peak - returned < (logits + half_the_sum + 0.2) * 2**30 < (plain.peak - returned) / 10
    assert found[0].peak - returned > (logits + half_the_sum - 0.2) * 2**30, "the recorder sees less than there is"


@pytest.mark.parametrize("vocab", (1, 7, 16, 37))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_a_sum_of_products_is_rounded_once(vocab: int, dtype: torch.dtype):
    """Products of small whole numbers are exact in any dtype, their sums not."""
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (torch.randint(9, (vocab, 3), generator=generator), torch.randint(9, (3, 5), generator=generator))
        for _ in range(40)
    ]
    with patch.object(gradient_sum, "SLAB", 15):
        total = GradientSum(torch.empty(vocab, 5, dtype=dtype))
        for a, b in pairs:
            total.add_product(a.to(dtype), b.to(dtype))
        found = total.result()
    exact = torch.stack([a @ b for a, b in pairs]).sum(0)
    assert int(exact.max()) > 1024 and torch.equal(found, exact.to(dtype))


# On a GPU


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_a_gpu_compiler_takes_them(dtype: torch.dtype):
    """Four programs of eight warps fill the registers of a processor of an H100 if a thread has 64 at most."""

    def in_earnest(vocab: int, smoothing: float) -> None:
        logits_TV = torch.empty(8192, vocab, device="meta", dtype=dtype).requires_grad_()
        labels_T = torch.empty(8192, device="meta", dtype=torch.int64)
        loss_triton.cross_entropy(HOPPER)(logits_TV, labels_T, label_smoothing=smoothing).total.backward()
        shard = loss_triton.cross_entropy_shard(HOPPER)
        statistics = shard.forward(logits_TV.detach(), labels_T)
        shard.backward(logits_TV.detach(), labels_T, statistics.lse_T, statistics.lse_T, vocab=vocab)
        hidden_TD, weight_VD = (torch.empty(rows, 2048, device="meta", dtype=dtype) for rows in (8192, vocab))
        linear_triton.linear_cross_entropy(HOPPER)(hidden_TD.requires_grad_(), weight_VD, labels_T).total.backward()

    kernels = [f"{FORWARD}:_evaluate", f"{FORWARD}:_summarise", f"{BACKWARD}:_differentiate"]
    kernels.append(f"{linear_triton.__name__}:_scale_in_place")
    sizes = ((131072, 0.0), (128256, 0.1), (50257, 0.1))
    wanted = [
        (vocab, launched)
        for vocab, smoothing in sizes
        for launched in {repr(x): x for x in launches_of(*kernels, by=partial(in_earnest, vocab, smoothing))}.values()
    ]
    assert {launched.kernel for _, launched in wanted} == set(kernels)
    for (vocab, launched), found in zip(wanted, compile_for_hopper(*(x for _, x in wanted)), strict=True):
        told = f"{vocab} {launched}: {found.registers} registers, {found.spills} bytes spilled, {found.shared} shared"
        assert found.shared <= SHARED_LIMIT and found.spills == 0, told
        assert launched.warps == 8 or "_scale" in launched.kernel, told
        if vocab % 16 == 0:
            assert found.registers <= 64 and "global.v4" in found.ptx, told
