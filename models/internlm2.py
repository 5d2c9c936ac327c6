"""InternLM2: grouped queries with one fused qkv weight, no biases, and a head whose rows may be normalised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import from_settings
from evocore.nn.family import Numerics


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``enable_qkv_fusion=False`` separates wq, wk and wv."""
    return Decoder(from_settings(settings, numerics, fused_qkv=bool(settings.get("enable_qkv_fusion", True))))
