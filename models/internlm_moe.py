"""InternLM-MoE: InternLM's attention, biases on qkv and output, with a mixture of experts behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import from_settings
from evocore.nn.family import Numerics


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``no_bias=True`` leaves the biases out."""
    biases = {key: not settings.get("no_bias") for key in ("qkv_bias", "o_bias") if settings.get(key) is None}
    return Decoder(from_settings({**settings, **biases}, numerics))
