"""The conformance kit on pytest's command line, for the repository of a plug-in::

    pytest -p evocore.testing.conformance.pytest_plugin --evocore-backend NAME [--evocore-op OP]

It adds the tests of ``evocore.testing.conformance.suite`` to whatever else is collected; a module that imports the
suite needs no plug-in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

SUITE = Path(__file__).parent / "suite.py"
NAME = "evocore/testing/conformance/suite.py"
"""By which its tests are known, wherever evocore is installed: ``--deselect`` takes it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("evocore", "conformance to the contracts of evocore")
    group.addoption("--evocore-backend", metavar="NAME", help="check this backend: kernels, device and collectives")
    group.addoption("--evocore-op", metavar="OP", help="only its kernels of this op")
    group.addoption("--evocore-provider", metavar="NAME", help="only its kernels of this provider")
    group.addoption("--evocore-sizes", metavar="SIZE", help="the largest cases: small, medium or large")


def pytest_configure(config: pytest.Config) -> None:
    """Let the suite be collected, too, if a backend is named."""
    if config.getoption("evocore_backend"):
        if str(SUITE) not in config.args:  # as it is for the workers of pytest-xdist
            config.args.append(str(SUITE))
    elif any(config.getoption(f"evocore_{name}") for name in ("op", "provider", "sizes")):
        raise pytest.UsageError("--evocore-op, --evocore-provider and --evocore-sizes need --evocore-backend NAME")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Name the suite: it lies outside of the repository whose tests it is among."""
    return pytest.Module.from_parent(parent, path=module_path, nodeid=NAME) if module_path == SUITE else None


def pytest_report_header(config: pytest.Config) -> str | None:
    backend = config.getoption("evocore_backend")
    return f"evocore: conformance of the backend {backend}" if backend else None
