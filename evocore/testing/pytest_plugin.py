"""Fixtures and settings for tests of evocore and of its plug-ins: ``pytest -p evocore.testing.pytest_plugin``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "evocore_environment",
        "NAME=VALUE lines: variables that some package reads when it is imported, whichever test imports it first",
        type="linelist",
        default=[],
    )


def pytest_configure(config: pytest.Config) -> None:
    """Set what ``evocore_environment`` lists, unless the user has set it otherwise."""
    for line in config.getini("evocore_environment"):
        name, equals, value = line.partition("=")
        if not (name.strip() and equals):
            raise pytest.UsageError(f"evocore_environment holds {line!r}: it takes NAME=VALUE lines")
        os.environ.setdefault(name.strip(), value.strip())


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., list[Any]]]:
    """``ranks(4, function, *args)``: what ``function`` returned on each of 4 processes of one gloo process group.

    The processes are kept until the end of the session; see ``evocore.testing.distributed.RankPool.run``.
    """
    from evocore.testing.distributed import RankPools

    # What most tests run; importing it in each process would take longer than many of these tests.
    pools = RankPools(preload=("evocore.training.run", "torch._dynamo"))
    yield pools.run
    pools.close()
