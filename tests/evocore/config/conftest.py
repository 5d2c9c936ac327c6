"""The smallest configs that say something, as values and as a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evocore.config import LoadedConfig, load_values


def smallest() -> dict[str, Any]:
    return {
        "model_type": "INTERNLM2",
        "data": {"seq_len": 64, "micro_bsz": 2, "micro_num": 4, "total_steps": 10},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 128, "mlp_ratio": 2.0},
        "ckpt": {"enable_save_ckpt": False},
    }


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
