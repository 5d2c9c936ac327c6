"""The conformance kit: shows that a backend keeps its contracts, whoever wrote it: kernels, device and collectives.

``evocore conform --backend NAME`` checks all that is offered for a device. In the tests of a plug-in, each case of
each kernel and each check of the device and of the collectives is a test of its own, by a module of two lines::

    from evocore.testing.conformance.suite import *

    EVOCORE_BACKEND = "toychip"

(see ``evocore.testing.conformance.suite``), or, without a module, by the command line
``pytest -p evocore.testing.conformance.pytest_plugin --evocore-backend toychip``. A single kernel is checked by::

    checker = Checker([my_kernel, *load_plugins().kernels()], MyBackend())

    @pytest.mark.parametrize("case", cases("rms_norm", torch.bfloat16), ids=str)
    def test_my_rms_norm(case):
        checker.check(my_kernel, case, torch.bfloat16)
"""

from evocore.testing.conformance.check import Checker, ConformanceError, KernelImportError, Outcome
from evocore.testing.conformance.example import SIZES, Case, Example
from evocore.testing.conformance.facilities import Finding
from evocore.testing.conformance.grid import case_named, cases
from evocore.testing.conformance.parts import Facilities, FacilitiesChecker, parts_of
from evocore.testing.conformance.selection import Selection
from evocore.testing.conformance.survey import Failure, Row, conform

__all__ = [
    "SIZES",
    "KernelImportError",
    "Case",
    "Checker",
    "Example",
    "Facilities",
    "FacilitiesChecker",
    "Failure",
    "Finding",
    "ConformanceError",
    "Outcome",
    "Row",
    "Selection",
    "case_named",
    "cases",
    "conform",
    "parts_of",
]
