"""Llama 2: separate wq, wk and wv, no biases, a plain head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import from_settings
from evocore.nn.family import Numerics


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``num_kv_attention_heads`` gives grouped queries."""
    return Decoder(from_settings(settings, numerics))
