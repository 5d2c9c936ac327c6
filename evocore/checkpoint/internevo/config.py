"""What a checkpoint of InternEvo says of its model: ``model_config.pt``, a dictionary of the ``model`` block.

It is a pickle of a class of InternEvo's. PyTorch's restricted unpickler is told to make a plain dictionary of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from evocore.checkpoint.foreign.torch_file import load_torch_file
from evocore.config.problems import shown
from evocore.errors import UserError

MODEL_CONFIG = "model_config.pt"
_CLASSES = ("internlm.core.context.parallel_context.Config", "internlm.utils.config.Config")


def saved_settings(path: Path) -> dict[str, Any]:
    """The ``model`` block, in the keys of the version that wrote it; empty if there is none.

    Raises:
        UserError: the file holds more than plain values.
    """
    if not (path / MODEL_CONFIG).is_file():
        return {}
    with torch.serialization.safe_globals([(OrderedDict, name) for name in _CLASSES]):
        found = load_torch_file(path / MODEL_CONFIG)
    return dict(found) if isinstance(found, dict) else {}


def require_same_meaning(source: str, told: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compare what changes the meaning of weights without changing their shapes.

    Raises:
        UserError: checkpoint and ``model`` block differ in it.
    """
    interleaved = told.get("qk_interleaved", not told["adapt_hf"] if "adapt_hf" in told else None)
    if interleaved is not None and bool(interleaved) != bool(settings.get("qk_interleaved", True)):
        raise UserError(
            f"model.qk_interleaved={shown(settings.get('qk_interleaved'))}, but {source} was trained with "
            f"{bool(interleaved)}",
            f"model.qk_interleaved={bool(interleaved)}, the order of the rows of its queries and keys",
            f"--set model.qk_interleaved={bool(interleaved)}",
        )
