"""InternLM-MoE: InternLM's attention, biases on qkv and output, with a mixture of experts behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evocore.models.decoder.internevo import internlm_names
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import DecoderSpec, from_settings
from evocore.nn.family import Numerics
from evocore.nn.weight_map import WeightMap


def build(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    """The model for InternEvo's ``model`` keys; ``no_bias=True`` leaves the biases out."""
    biases = {key: not settings.get("no_bias") for key in ("qkv_bias", "o_bias") if settings.get(key) is None}
    return Decoder(from_settings({**settings, **biases}, numerics))


def internevo_weights(spec: DecoderSpec) -> WeightMap:
    """Between our parameters and those of InternEvo's checkpoints."""
    return internlm_names(spec)
