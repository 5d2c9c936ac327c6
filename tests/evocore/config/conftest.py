"""Loading the smallest config with overrides, and writing config files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from config_samples import smallest

from evocore.config import LoadedConfig, load_values


@pytest.fixture
def load() -> Callable[..., LoadedConfig]:
    """Loads the smallest config with some ``KEY=VALUE`` overrides."""
    return lambda *sets: load_values(smallest(), sets)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file below the test's own folder."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write_file
