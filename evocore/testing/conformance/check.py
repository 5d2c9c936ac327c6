"""Checks one kernel on one case: what every kernel promises by being offered."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from evocore.backend import Backend
from evocore.ops.kernel import Kernel
from evocore.testing.conformance.calls import LAYOUTS, ContractError, Results, call, during, told
from evocore.testing.conformance.choices import numbers_of
from evocore.testing.conformance.example import Case, Example
from evocore.testing.conformance.grid import GRIDS
from evocore.testing.conformance.rule import Rule

REFERENCE = "reference"
HOST = "cpu"
FEATURES = (
    "values",
    "repeats",
    "unwritten memory",
    "strides",
    "single gradients",
    "no gradients",
    "empty",
    "mixed",
    "drawn",
)
"""What a case can show of a kernel: outputs and gradients; up to ``no gradients``, what thorough checks show besides;
then kinds of cases."""


class ConformanceError(AssertionError):
    """A kernel that breaks its contract: what it does, and on the next line the command that shows it again.

    Attributes:
        what: one line.
        reproducer: the command.
    """

    def __init__(self, what: str, reproducer: str) -> None:
        super().__init__(f"{what}\n  to see it again: {reproducer}")
        self.what, self.reproducer = what, reproducer


class KernelImportError(ConformanceError):
    """A kernel whose module, or maker, raises."""


@dataclass(frozen=True)
class Outcome:
    """Of a case that did not fail.

    Attributes:
        refused: why the kernel does not serve it; None if it was called and conforms.
        worst: the largest error found, as a multiple of the allowed one.
        shown: which of ``FEATURES`` the case has shown.
    """

    refused: str | None
    worst: float = 0.0
    shown: tuple[str, ...] = ()


class Checker:
    """Checks kernels on one device.

    Args:
        kernels: every offer of every plug-in: the references are among them.
        backend: drives the device to run on.
    """

    def __init__(self, kernels: Sequence[Kernel], backend: Backend) -> None:
        self.kernels, self.backend, self.device = kernels, backend, backend.device()
        self._functions: dict[Kernel, Callable[..., Any]] = {}
        self._latest: tuple[tuple[Case, torch.dtype], Results, Results] | None = None

    def offered(self) -> list[Kernel]:
        """The kernels for this device by op and provider, also those that cannot be used here."""
        mine = (kernel for kernel in self.kernels if self.device.type in kernel.devices)
        return sorted(mine, key=lambda kernel: (kernel.op, kernel.provider))

    def dtypes(self, kernel: Kernel) -> list[torch.dtype]:
        """Those of the kernel that the device trains in, and float64 if the kernel declares it."""
        usable = self.backend.dtypes() | {torch.float64}
        order = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
        return [dtype for dtype in order if dtype in kernel.dtypes & usable]

    def load(self, kernel: Kernel) -> Callable[..., Any]:
        """The kernel as a differentiable function of the form that ``Example`` describes.

        Raises:
            KernelImportError: if that fails.
        """
        if kernel not in self._functions:
            try:
                self._functions[kernel] = GRIDS[kernel.op].adapt(kernel.load())
            except Exception as error:  # noqa: BLE001 - a stranger's import can raise anything; it is reported
                raise KernelImportError(f"cannot be imported: {told(error)}", self.reproducer(kernel)) from error
        return self._functions[kernel]

    def check(self, kernel: Kernel, case: Case, dtype: torch.dtype, *, thorough: bool = True) -> Outcome:
        """Check ``kernel`` on ``case`` in ``dtype``.

        Whether it serves or says why not; outputs and gradients against the float64 reference; that nothing given is
        changed; and, if ``thorough``, that it repeats itself to the bit if it claims to, reads no memory that it did
        not write, takes activations and gradients in any layout, and serves whichever inputs require gradients.

        Raises:
            ConformanceError: at the first thing that is wrong.
        """
        example = case.make(dtype)
        try:
            refused = self._refusal(kernel, example)
            if refused is not None:
                return Outcome(refused)
            function = self.load(kernel)
            exact, plain = self._truth(kernel, case, dtype)
            rule = Rule(exact, plain, reference_in=dtype if kernel.provider == REFERENCE else None, zeros=case.empty)
            worst, shown = _check(function, example.to(self.device), rule, thorough, kernel.deterministic)
            return Outcome(None, worst, (*shown, *_kinds(case)))
        except ContractError as violation:
            raise ConformanceError(str(violation), self.reproducer(kernel, case, dtype)) from violation.__cause__

    def reproducer(self, kernel: Kernel, case: Case | None = None, dtype: torch.dtype | None = None) -> str:
        """The command that checks this again."""
        words = [
            "evocore",
            "conform",
            "--backend",
            self.backend.name,
            "--op",
            kernel.op,
            "--provider",
            kernel.provider,
        ]
        if dtype is not None:
            words += ["--dtype", short(dtype)]
        if case is not None:
            words += ["--case", case.label]
        return shlex.join(words)

    def _refusal(self, kernel: Kernel, example: Example) -> str | None:
        """Why it does not serve; its own check must not raise, and must give a reason."""
        for request in (example.request, *example.also):
            elsewhere = replace(kernel, supports=lambda request: None).why_not(request, self.device.type)
            if elsewhere is not None:
                return elsewhere
            with during(f"its supports() for [{request}]"):
                reason = kernel.supports(request)
            if reason is not None and not (isinstance(reason, str) and reason.strip()):
                raise ContractError(f"its supports() for [{request}] returned {reason!r}, neither None nor a reason")
            if reason is not None:
                return reason
        return None

    def _truth(self, kernel: Kernel, case: Case, dtype: torch.dtype) -> tuple[Results, Results]:
        """What the reference gives in float64 on the host, and in ``dtype`` on the device; the latest is kept."""
        if self._latest is None or self._latest[0] != (case, dtype):
            references = [k for k in self.kernels if (k.op, k.provider) == (case.op, REFERENCE) and HOST in k.devices]
            if not references:
                raise ContractError(f"no plug-in offers the reference of {case.op} for {HOST}: there is no oracle")
            example = case.make(dtype)
            try:
                function = self.load(references[0])
            except KernelImportError as error:
                raise ContractError(f"the reference of {case.op}, which is the oracle, {error.what}") from error
            with during(f"the reference of {case.op}"):
                exact, plain = call(function, example.exact()), call(function, example.to(self.device))
            self._latest = (case, dtype), exact, plain
        return self._latest[1:]


def short(dtype: torch.dtype) -> str:
    """Its name without the library's."""
    return str(dtype).removeprefix("torch.")


def _kinds(case: Case) -> list[str]:
    kinds = {"empty": case.empty, "mixed": case.mixed, "drawn": numbers_of(case.label) is not None}
    return [name for name, it_is in kinds.items() if it_is]


def _check(
    function: Callable[..., Any], example: Example, rule: Rule, thorough: bool, deterministic: bool
) -> tuple[float, list[str]]:
    """The worst error of all calls, as a multiple of the allowed one, and which ``FEATURES`` were shown."""
    with during():
        first = call(function, example)
    rule.check_differentiable(first)
    worst, shown = rule.worst(first), ["values"]
    if not thorough:
        return worst, shown
    if deterministic:
        with during("called again"):
            second = call(function, example).named()
            differs = [name for name, x in first.named().items() if not torch.equal(x, second[name])]
            if differs:
                raise ContractError(
                    f"{differs[0]} is not the same to the bit, although it claims to be deterministic"
                )
        shown.append("repeats")
    with during("in memory that holds NaN"), _memory_of_nan():
        worst = max(worst, rule.worst(call(function, example)))
    shown.append("unwritten memory")
    if example.activations:
        for name, layout in LAYOUTS.items():
            with during(f"with tensors stored {name}"):
                worst = max(worst, rule.worst(call(function, example.relaid(layout), layout=layout)))
        shown.append("strides")
    if len(example.inputs) > 1:
        for index in range(len(example.inputs)):
            with during(f"with a gradient of input {index} alone"):
                worst = max(worst, rule.worst(call(function, example, wanted=[index])))
        shown.append("single gradients")
    if example.inputs:
        with during("without gradients"):
            without = call(function, example, wanted=[])
            if any(without.differentiable):
                raise ContractError("an output requires a gradient")
            worst = max(worst, rule.worst(without))
        shown.append("no gradients")
    return worst, shown


@contextmanager
def _memory_of_nan() -> Iterator[None]:
    """New tensors hold NaN until they are written to, so that reading one too early shows."""
    before = torch.get_deterministic_debug_mode()
    try:
        torch.set_deterministic_debug_mode("warn")  # which fills it, see torch.utils.deterministic
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that an operator is not deterministic does not matter here
            yield
    finally:
        torch.set_deterministic_debug_mode(before)
