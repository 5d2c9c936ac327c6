"""The conformance kit as tests, one for each case of each kernel and for each check of the device and collectives.

A module of two lines in a plug-in's own tests collects them all (three, with what it selects)::

    from evocore.testing.conformance.suite import *  # noqa: F403

    EVOCORE_BACKEND = "toychip"
    EVOCORE_OP = "swiglu"  # only kernels of this op; leave it out for all, and for device and collectives

``EVOCORE_PROVIDER`` and ``EVOCORE_SIZES`` (``small``, ``medium``, ``large``) select as the options of
``evocore conform`` do. Without a module, the plug-in ``evocore.testing.conformance.pytest_plugin`` takes the same as
options of pytest. pytest's own ``-k`` selects by the tests' names, e.g. ``-k "swiglu and bfloat16"``, and
``pytest_collection_modifyitems`` in a ``conftest.py`` can mark what is known to fail.

What a kernel refuses, and what a backend does not claim, is skipped with the reason. A backend that is not available
is an error: a job that checked nothing must not look like one that passed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from evocore.backend import Backend, choose_backend
from evocore.errors import UserError
from evocore.ops.contracts import check_contracts
from evocore.ops.kernel import Kernel
from evocore.plugins.manager import load_plugins
from evocore.testing.conformance.check import Checker, ConformanceError, short
from evocore.testing.conformance.example import Case
from evocore.testing.conformance.facilities import Finding, label_of
from evocore.testing.conformance.parts import Facilities, FacilitiesChecker, parts_of
from evocore.testing.conformance.selection import Selection

__all__ = [
    "evocore_facilities",
    "pytest_generate_tests",
    "test_collectives_conform",
    "test_device_conforms",
    "test_kernel_conforms",
]

OPTIONS = ("backend", "op", "provider", "sizes")
"""``EVOCORE_<NAME>`` in a module, ``--evocore-<name>`` on the command line."""
_CHECKERS = pytest.StashKey[dict[str, "Checker"]]()


def test_kernel_conforms(
    evocore_checker: Checker,
    evocore_kernel: Kernel,
    evocore_dtype: torch.dtype,
    evocore_case: Case,
    evocore_thorough: bool,
) -> None:
    """One case of one kernel in one dtype."""
    outcome = evocore_checker.check(evocore_kernel, evocore_case, evocore_dtype, thorough=evocore_thorough)
    if outcome.refused is not None:
        pytest.skip(outcome.refused)


def test_device_conforms(evocore_facilities: FacilitiesChecker, evocore_check: str) -> None:
    """One check of the device."""
    _judge(evocore_facilities.check("device", evocore_check, 1))


def test_collectives_conform(evocore_facilities: FacilitiesChecker, evocore_check: str, evocore_ranks: int) -> None:
    """One check of the collectives, in so many processes."""
    _judge(evocore_facilities.check("collectives", evocore_check, evocore_ranks))


@pytest.fixture(scope="module")
def evocore_facilities(evocore_backend: Backend) -> Iterator[FacilitiesChecker]:
    """Checks the backend's device and collectives; its processes are kept for all tests of the module."""
    checker = FacilitiesChecker(evocore_backend)
    yield checker
    checker.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of everything that is selected."""
    if metafunc.function not in (test_kernel_conforms, test_device_conforms, test_collectives_conform):
        return
    chosen = {name: _option(metafunc, name) for name in OPTIONS}
    try:
        checker = _checker(metafunc.config, chosen["backend"])
        selection = Selection(chosen["op"], chosen["provider"], largest=chosen["sizes"])
        selection.validate(checker)
        if not checker.offered():
            raise UserError(
                f"no plug-in offers a kernel for {checker.backend.name}",
                "at least the references, for every op",
                "let evocore_kernels() return evocore.kernels.references.reference_kernels(DEVICE_TYPE), too",
            )
        parts = parts_of(None, of_kernels=bool(chosen["op"] or chosen["provider"]), of_others=False)
    except UserError as mistake:
        raise pytest.Collector.CollectError(str(mistake)) from mistake
    if metafunc.function is test_kernel_conforms:
        names = "evocore_checker, evocore_kernel, evocore_dtype, evocore_case, evocore_thorough"
        metafunc.parametrize(names, _kernels(checker, selection))
        return
    part = "device" if metafunc.function is test_device_conforms else "collectives"
    checks = [(name, ranks) for _, name, ranks in Facilities({part} & set(parts)).selected()]
    ids = [label_of(part, name, ranks) for name, ranks in checks]
    metafunc.parametrize("evocore_backend", [checker.backend], ids=[checker.backend.name], scope="module")
    if part == "device":
        metafunc.parametrize("evocore_check", [name for name, _ in checks], ids=ids)
    else:
        metafunc.parametrize(("evocore_check", "evocore_ranks"), checks, ids=ids)


def _option(metafunc: pytest.Metafunc, name: str) -> str | None:
    """What the module says, or the command line."""
    given: str | None = getattr(metafunc.module, f"EVOCORE_{name.upper()}", None)
    return given or metafunc.config.getoption(f"evocore_{name}", None)


def _checker(config: pytest.Config, backend: str | None) -> Checker:
    """One for all tests of a backend, so that what the references give is worked out once."""
    checkers = config.stash.setdefault(_CHECKERS, {})
    if (backend or "") not in checkers:
        registry = load_plugins()
        kernels = registry.kernels()
        check_contracts(kernels)
        chosen, _ = choose_backend(registry.backends(), flag=backend)
        checkers[backend or ""] = Checker(kernels, chosen)
    return checkers[backend or ""]


def _kernels(checker: Checker, selection: Selection) -> list[Any]:
    """Case by case, as the checker keeps what the references gave for the latest."""
    kernels, tests = [kernel for kernel in checker.offered() if selection.takes(kernel)], []
    for op in dict.fromkeys(kernel.op for kernel in kernels):
        of_op = [kernel for kernel in kernels if kernel.op == op]
        for dtype in dict.fromkeys(dtype for kernel in of_op for dtype in selection.dtypes(checker, kernel)):
            for case in selection.cases(checker, op, dtype):
                for kernel in of_op:
                    if dtype in selection.dtypes(checker, kernel):
                        claims = "" if kernel.deterministic else "-not_deterministic"
                        name = f"{op}-{kernel.provider}{claims}-{short(dtype)}-{case.label}"
                        thorough = selection.is_thorough(checker, kernel, case, dtype)
                        tests.append(pytest.param(checker, kernel, dtype, case, thorough, id=name))
    return tests


def _judge(finding: Finding) -> None:
    if finding.verdict == "failed":
        raise ConformanceError(finding.what, finding.reproducer)
    if finding.verdict != "passed":
        pytest.skip(finding.what)
