"""Every kernel of the CPU against its contract: the conformance kit's grid, and cases that hypothesis draws.

Kernels that an interpreter runs take milliseconds for each step of a program: they are checked on small cases, and
thoroughly on the representative ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evocore.backends.cpu.device import CPUBackend
from evocore.backends.cpu.kernels import KERNELS
from evocore.ops.kernel import Kernel
from evocore.testing.conformance import Case, Checker, cases
from evocore.testing.conformance.strategies import drawn_cases

CHECKER = Checker(KERNELS, CPUBackend())
LOW = (torch.bfloat16, torch.float16)
LIMITS: dict[str, Callable[[Any], bool]] = {
    "attention-native": lambda request: request.softcap is not None,
    "geglu-analytic": lambda request: request.approximate != "tanh",
    "linear_cross_entropy-triton": lambda request: request.softcap is not None,
}
"""What a kernel may refuse of the grid, and nothing else."""


def _name(kernel: Kernel) -> str:
    return f"{kernel.op}-{kernel.provider}"


def _is_interpreted(kernel: Kernel) -> bool:
    return kernel.provider == "triton"


def _grid() -> list[Any]:
    return [
        pytest.param(kernel, dtype, case, id=f"{_name(kernel)}-{str(dtype).removeprefix('torch.')}-{case}")
        for kernel in CHECKER.offered()
        for dtype in CHECKER.dtypes(kernel)
        for case in cases(kernel.op, dtype, largest="small" if dtype in LOW or _is_interpreted(kernel) else "medium")
    ]


def _compiled(*ops: str) -> list[Kernel]:
    return [kernel for kernel in CHECKER.offered() if kernel.op in ops or not ops if not _is_interpreted(kernel)]


def _check(kernel: Kernel, case: Case, dtype: torch.dtype, *, thorough: bool) -> None:
    outcome = CHECKER.check(kernel, case, dtype, thorough=thorough)
    may_refuse = _name(kernel) in LIMITS and LIMITS[_name(kernel)](case.make(dtype).request)
    assert (outcome.refused is not None) == may_refuse, outcome.refused


@pytest.mark.parametrize(("kernel", "dtype", "case"), _grid())
def test_kernels_conform(kernel: Kernel, dtype: torch.dtype, case: Case):
    thorough = dtype == torch.float32 and (case.representative or not _is_interpreted(kernel))
    _check(kernel, case, dtype, thorough=thorough)


@pytest.mark.parametrize("kernel", _compiled(), ids=_name)
def test_kernels_conform_in_cases_that_nobody_thought_of(kernel: Kernel):
    @settings(deadline=None, max_examples=15, derandomize=True, database=None)
    @given(case=drawn_cases(kernel.op), dtype=st.sampled_from(CHECKER.dtypes(kernel)))
    def conforms(case: Case, dtype: torch.dtype) -> None:
        _check(kernel, case, dtype, thorough=True)

    conforms()


# The losses


@pytest.mark.parametrize("kernel", _compiled("cross_entropy", "linear_cross_entropy"), ids=_name)
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


_LINEAR = [kernel for kernel in _compiled("linear_cross_entropy") if kernel.provider != "reference"]


def test_the_recorder_sees_the_logits_of_the_reference():
    (reference,) = (kernel for kernel in _compiled("linear_cross_entropy") if kernel.provider == "reference")
    recorder = _record(reference.load(), True, True)
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
