"""Fixtures for tests of evocore and of its plug-ins: ``pytest -p evocore.testing.pytest_plugin``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ranks() -> Iterator[Callable[..., list[Any]]]:
    """``ranks(4, function, *args)``: what ``function`` returned on each of 4 processes of one gloo process group.

    The processes are kept until the end of the session; see ``evocore.testing.distributed.RankPool.run``.
    """
    from evocore.testing.distributed import RankPools

    pools = RankPools()
    yield pools.run
    pools.close()
