"""Every kernel against its op's reference in float64, over the declared grid.

The rule: an error is at most twice that of the plain reference on the same inputs in the same precision. Where the
plain reference happens to be exact, or nearly so, twice its error would forbid even one rounding more; hence a floor
of a few units in the last place (``FLOOR``) of the largest number of the result, or of 1: inputs are of that order,
and a sum of theirs that cancels keeps their rounding. A reference cannot be measured against itself: it gets a bound
of its own (``REFERENCE``), and in float64 it is the subject of ``test_kernels_references.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from kernel_cases import Case, Example, adamw_request, adamw_tensors, cases, empty
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evocore.backends.cpu.kernels import KERNELS
from evocore.ops.kernel import Kernel

LOW = (torch.bfloat16, torch.float16)
FLOOR = {torch.float64: 256, torch.float32: 16, torch.bfloat16: 4, torch.float16: 4}
"""Times eps of the result's dtype. Low precision: operators that round between their steps, as PyTorch's do. float32:
sums of hundreds in another order. float64: the same, where the plain reference is exact by definition."""
REFERENCE = 16
"""Times eps of the activations' dtype: the reference rounds products and probabilities in low precision."""
LIMITS: dict[str, Callable[[Any], bool]] = {
    "attention-native": lambda request: request.softcap is not None,
    "geglu-analytic": lambda request: request.approximate != "tanh",
}
"""What a kernel may refuse of the grid, and nothing else."""


def _name(kernel: Kernel) -> str:
    return f"{kernel.op}-{kernel.provider}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _is_reference(kernel: Kernel) -> bool:
    return kernel.provider == "reference"


def _reference(op: str) -> Callable[..., Any]:
    (kernel,) = (kernel for kernel in KERNELS if kernel.op == op and _is_reference(kernel))
    return kernel.load()


def _grid() -> list[Any]:
    return [
        pytest.param(kernel, dtype, case, id=f"{_name(kernel)}-{_short(dtype)}-{case}")
        for kernel in KERNELS
        if kernel.op != "adamw"
        for dtype in sorted(kernel.dtypes, key=str)
        if not (_is_reference(kernel) and dtype == torch.float64)
        for case in cases(kernel.op)
        if (case.small or dtype not in LOW) and (dtype in LOW or not case.mixed)
    ]


def _pairs(*dtypes: torch.dtype) -> list[Any]:
    return [
        pytest.param(kernel, dtype, id=f"{_name(kernel)}-{_short(dtype)}")
        for kernel in KERNELS
        if kernel.op != "adamw"
        for dtype in dtypes
    ]


def _serves(kernel: Kernel, example: Example) -> bool:
    """Whether it serves; one that does not must say why, and the limit must be one that we know of."""
    reason = kernel.why_not(example.request, "cpu")
    if reason is None:
        return True
    assert reason.strip()
    assert LIMITS.get(_name(kernel), lambda request: False)(example.request), f"undeclared limit: {reason}"
    return False


def _results(function: Callable[..., Any], example: Example, upstream: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """All outputs, then the gradients of all inputs."""
    inputs = [x.detach().requires_grad_() for x in example.inputs]
    returned = function(*inputs, *example.constants, **example.options)
    outputs = list(returned) if isinstance(returned, tuple) else [returned]
    differentiable = [out for out in outputs if out.requires_grad]
    gradients = torch.autograd.grad(
        differentiable, inputs, [upstream(out) for out in differentiable], materialize_grads=True
    )
    return [out.detach() for out in outputs] + list(gradients)


def _random_upstream(out: Tensor) -> Tensor:
    """The same random gradient for every provider and precision: rounded to bfloat16, so that all can hold it."""
    generator = torch.Generator().manual_seed(out.numel())
    return torch.randn(out.shape, generator=generator).bfloat16().to(out.dtype)


def _strided_upstream(out: Tensor) -> Tensor:
    gradient = _random_upstream(out)
    return torch.stack((gradient, gradient), -1)[..., 0]


def _allowed(kernel: Kernel, dtype: torch.dtype, coarsest: torch.dtype, plain: Tensor, exact: Tensor) -> float:
    """The largest error that a result of ``dtype`` may have; ``coarsest`` is that of the inputs."""
    size = max(1.0, exact.abs().max().item())
    if _is_reference(kernel):
        return REFERENCE * torch.finfo(coarsest).eps * size
    return max(2 * (plain.double() - exact).abs().max().item(), FLOOR[dtype] * torch.finfo(dtype).eps * size)


def _check(kernel: Kernel, example: Example, upstream: Callable[[Tensor], Tensor] = _random_upstream) -> list[Tensor]:
    """Assert the rule of this module for one call, and return its results."""
    reference = _reference(kernel.op)
    exact = _results(reference, example.in_float64(), _random_upstream)
    plain = _results(reference, example, _random_upstream)
    found = _results(kernel.load(), example, upstream)
    assert [x.dtype for x in found] == [x.dtype for x in plain]
    assert [x.shape for x in found] == [x.shape for x in exact]
    for index, (ours, theirs, truth) in enumerate(zip(found, plain, exact, strict=True)):
        if truth.dtype == torch.bool:
            assert torch.equal(ours, truth)
        elif truth.numel():
            allowed = _allowed(kernel, ours.dtype, example.request.dtype, theirs, truth)
            error = (ours.double() - truth).abs().max()
            assert error <= allowed, f"result {index}: error {error:.3g}, allowed {allowed:.3g}"
    return found


@pytest.mark.parametrize(("kernel", "dtype", "case"), _grid())
def test_outputs_and_gradients_are_as_good_as_the_plain_reference(kernel: Kernel, dtype: torch.dtype, case: Case):
    example = case.make(dtype)
    if _serves(kernel, example):
        _check(kernel, example)


@pytest.mark.parametrize(("kernel", "dtype"), _pairs(torch.float32))
def test_inputs_are_left_alone_and_may_have_any_strides(kernel: Kernel, dtype: torch.dtype):
    for case in cases(kernel.op):
        example = case.make(dtype).strided()
        if not _serves(kernel, example):
            continue
        tensors = [x for x in (*example.inputs, *example.constants) if x is not None]
        before = [x.clone() for x in tensors]
        _check(kernel, example, _strided_upstream)
        assert all(torch.equal(x, copy) for x, copy in zip(tensors, before, strict=True)), case.label


@pytest.mark.parametrize(("kernel", "dtype"), _pairs(torch.float32, torch.bfloat16))
def test_no_tokens_is_no_special_case(kernel: Kernel, dtype: torch.dtype):
    for example in empty(kernel.op, dtype):
        if _serves(kernel, example):
            *_, gradient = _check(kernel, example)
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize(("kernel", "dtype"), _pairs(torch.float32))
def test_deterministic_kernels_repeat_themselves_to_the_bit(kernel: Kernel, dtype: torch.dtype):
    if not kernel.deterministic:
        pytest.skip("does not claim it")
    for case in cases(kernel.op):
        example = case.make(dtype)
        if _serves(kernel, example):
            first, second = (_results(kernel.load(), example, _random_upstream) for _ in range(2))
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), case.label


@pytest.mark.parametrize(("kernel", "dtype"), _pairs(torch.float32))
def test_a_frozen_input_changes_nothing_for_the_others(kernel: Kernel, dtype: torch.dtype):
    examples = [case.make(dtype) for case in cases(kernel.op) if case.small]
    example, function = [example for example in examples if _serves(kernel, example)][-1], kernel.load()
    together = _results(function, example, _random_upstream)[-len(example.inputs) :]
    for index, gradient in enumerate(together):
        inputs = [x.detach().requires_grad_(position == index) for position, x in enumerate(example.inputs)]
        returned = function(*inputs, *example.constants, **example.options)
        outputs = [out for out in (returned if isinstance(returned, tuple) else [returned]) if out.requires_grad]
        (alone,) = torch.autograd.grad(outputs, inputs[index], [_random_upstream(out) for out in outputs])
        torch.testing.assert_close(alone, gradient)


@pytest.mark.parametrize(
    "kernel", [kernel for kernel in KERNELS if kernel.op in ("rms_norm", "add_rms_norm")], ids=_name
)
def test_rows_of_zeros_have_zeros_and_finite_gradients(kernel: Kernel):
    example = cases(kernel.op)[-1].make(torch.float32)
    *activations, weight = example.inputs
    example = replace(example, inputs=(*(torch.zeros_like(x) for x in activations), weight))
    outputs_and_gradients = _results(kernel.load(), example, _random_upstream)
    assert torch.equal(outputs_and_gradients[0], torch.zeros_like(activations[0]))
    assert all(x.isfinite().all() for x in outputs_and_gradients)


# The losses


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if "cross_entropy" in kernel.op], ids=_name)
def test_only_the_total_of_a_loss_is_differentiable(kernel: Kernel):
    example = cases(kernel.op)[0].make(torch.bfloat16)
    result = kernel.load()(*(x.requires_grad_() for x in example.inputs), *example.constants, **example.options)
    assert result.total.requires_grad and not result.loss_T.requires_grad and not result.correct_T.requires_grad
    assert (result.total.dtype, result.loss_T.dtype, result.correct_T.dtype) == (
        torch.float32,
        torch.float32,
        torch.bool,
    )


class _Recorder(TorchDispatchMode):
    """What the operators called inside it allocate and multiply.

    Attributes:
        largest: elements of the largest tensor that an operator gave back.
        products: multiplications of all matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.numel() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        if "mm" in str(func.overloadpacket):
            a, b = [x for x in args if isinstance(x, Tensor)][-2:]
            self.products += a.numel() * b.shape[-1]
        return out


TOKENS, WIDTH, VOCAB = 192, 4, 2**15


def _record(function: Callable[..., Any], hidden_grad: bool, weight_grad: bool) -> _Recorder:
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(TOKENS, WIDTH, generator=generator).requires_grad_(hidden_grad)
    weight_VD = torch.randn(VOCAB, WIDTH, generator=generator).requires_grad_(weight_grad)
    labels_T = torch.randint(VOCAB, (TOKENS,), generator=generator)
    with _Recorder() as recorder:
        total = function(hidden_TD, weight_VD, labels_T, label_smoothing=0.1, z_loss=1e-3).total
        if total.requires_grad:
            total.backward()
    return recorder


_LINEAR = [kernel for kernel in KERNELS if kernel.op == "linear_cross_entropy" and not _is_reference(kernel)]


def test_the_recorder_sees_the_logits_of_the_reference():
    recorder = _record(_reference("linear_cross_entropy"), True, True)
    assert recorder.largest == TOKENS * VOCAB and recorder.products == 3 * TOKENS * WIDTH * VOCAB


@pytest.mark.parametrize("kernel", _LINEAR, ids=_name)
def test_linear_cross_entropy_never_holds_all_logits(kernel: Kernel):
    assert _record(kernel.load(), True, True).largest < TOKENS * VOCAB


@pytest.mark.parametrize("kernel", _LINEAR, ids=_name)
def test_linear_cross_entropy_computes_only_the_gradients_that_are_wanted(kernel: Kernel):
    forward = TOKENS * WIDTH * VOCAB
    with torch.no_grad():
        assert _record(kernel.load(), True, True).products == forward
    assert _record(kernel.load(), False, False).products == forward
    assert _record(kernel.load(), True, False).products == 2 * forward
    assert _record(kernel.load(), True, True).products == 3 * forward


# AdamW, which works in place


def _adamw(function: Callable[..., Any], dtype: torch.dtype) -> list[Tensor]:
    """Parameters and both moments after four steps with changing rates."""
    params, gradients = adamw_tensors(torch.float32)
    params, gradients = [x.to(dtype) for x in params], [[x.to(dtype) for x in step] for step in gradients]
    exp_avgs, exp_avg_sqs = ([torch.zeros_like(x) for x in params] for _ in range(2))
    for step, grads in enumerate(gradients, 1):
        before = [x.clone() for x in grads]
        function(
            params,
            grads,
            exp_avgs,
            exp_avg_sqs,
            step=step,
            lr=0.1 / step,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            weight_decay=0.1,
        )
        assert all(torch.equal(x, copy) for x, copy in zip(grads, before, strict=True)), "a gradient was modified"
    return params + exp_avgs + exp_avg_sqs


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=_short)
@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.op == "adamw"], ids=_name)
def test_adamw_is_as_good_as_the_plain_reference(kernel: Kernel, dtype: torch.dtype):
    assert kernel.why_not(adamw_request(dtype), "cpu") is None
    exact, plain = _adamw(_reference("adamw"), torch.float64), _adamw(_reference("adamw"), dtype)
    found = _adamw(kernel.load(), dtype)
    for ours, theirs, truth in zip(found, plain, exact, strict=True):
        if truth.numel():
            allowed = _allowed(kernel, dtype, dtype, theirs, truth)
            assert (ours.double() - truth).abs().max() <= allowed
    assert all(torch.equal(a, b) for a, b in zip(found, _adamw(kernel.load(), dtype), strict=True))


@pytest.mark.parametrize("kernel", [kernel for kernel in KERNELS if kernel.op == "adamw"], ids=_name)
def test_adamw_passes_over_what_is_empty(kernel: Kernel):
    step = partial(kernel.load(), step=1, lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1)
    alone, beside = ([torch.ones(3), torch.full((3,), 0.5), torch.zeros(3), torch.zeros(3)] for _ in range(2))
    step(*[[] for _ in range(4)])
    step(*[[tensor] for tensor in alone])
    step(*[[torch.empty(0), tensor] for tensor in beside])
    assert all(torch.equal(a, b) for a, b in zip(alone, beside, strict=True))
    assert torch.allclose(alone[0], torch.tensor(1 - 0.1 * 0.1 - 0.1))  # decay, then one step of the learning rate
