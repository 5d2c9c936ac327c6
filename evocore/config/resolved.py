"""The config of a run as JSON beside its checkpoints, so that resuming and generating read what was trained.

JSON, not Python: reading somebody's run must not execute anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evocore.config.loaded import LoadedConfig
from evocore.config.problems import combined
from evocore.config.schema import Config
from evocore.config.settings import flatten
from evocore.config.validate import validate
from evocore.errors import UserError


def save_resolved(loaded: LoadedConfig, path: str | Path) -> None:
    """Write ``{"values": {block: {key: value}}, "sources": {dotted key: source}}``."""
    content = {"values": loaded.config.model_dump(mode="json"), "sources": loaded.sources}
    Path(path).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def load_resolved(path: str | Path) -> Config:
    """Read what save_resolved wrote.

    Raises:
        UserError: if the file is absent, no such JSON, or holds keys or values that the schema does not know.
    """
    expected = "a config.json as a run writes it"
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", expected, "check the path of the run") from error
    except ValueError as error:  # covers JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is no JSON: {error}", expected, "restore the file from the run") from error
    if not isinstance(content, dict) or not isinstance(content.get("values"), dict):
        raise UserError(f'{path} has no "values"', expected, "restore the file from the run")
    return config_from_values(content["values"], str(path))


def config_from_values(values: Mapping[str, Any], name: str = "the resolved config") -> Config:
    """The config of resolved values, as ``Config.model_dump(mode="json")`` gives them: nothing is derived or mapped.

    Raises:
        UserError: if a key is unknown or missing or a value does not fit; ``name`` says where they come from.
    """
    config, problems = validate(flatten(values, name), name)
    if config is None:
        raise combined(problems, name)
    return config
