"""The conformance kit: shows that a kernel keeps its contract, on any device, whoever wrote it.

In tests of a plug-in::

    checker = Checker([my_kernel, *load_plugins().kernels()], MyBackend())

    @pytest.mark.parametrize("case", cases("rms_norm", torch.bfloat16), ids=str)
    def test_my_rms_norm(case):
        checker.check(my_kernel, case, torch.bfloat16)

and for everything that is offered, ``conform(checker)`` or ``evocore conform --backend NAME``.
"""

from evocore.testing.conformance.check import Checker, ConformanceError, KernelImportError, Outcome
from evocore.testing.conformance.example import SIZES, Case, Example
from evocore.testing.conformance.grid import case_named, cases
from evocore.testing.conformance.selection import Selection
from evocore.testing.conformance.survey import Failure, Row, conform

__all__ = [
    "SIZES",
    "KernelImportError",
    "Case",
    "Checker",
    "Example",
    "Failure",
    "ConformanceError",
    "Outcome",
    "Row",
    "Selection",
    "case_named",
    "cases",
    "conform",
]
