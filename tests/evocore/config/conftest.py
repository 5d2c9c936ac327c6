"""Loading the smallest config with overrides, and writing config files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from config_samples import FAMILIES, smallest

from evocore.config import LoadedConfig, check, load_values
from evocore.errors import UserError


@pytest.fixture
def load() -> Callable[..., LoadedConfig]:
    """Loads the smallest config with some ``KEY=VALUE`` overrides."""
    return lambda *sets: load_values(smallest(), sets)


@pytest.fixture
def problems_of(load: Callable[..., LoadedConfig]) -> Callable[..., list[UserError]]:
    """What keeps the smallest config with some overrides from running."""
    return lambda sets, world_size=1: check(load(*sets).config, world_size=world_size, families=FAMILIES)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file below the test's own folder."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
