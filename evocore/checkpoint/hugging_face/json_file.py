"""The JSON files beside a model's weights, which may come from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evocore.errors import UserError


def read_object(path: Path) -> dict[str, Any]:
    """The object in an existing file.

    Raises:
        UserError: it holds none.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", "a JSON object", "download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}", "a JSON object", "download it again")
    return found
