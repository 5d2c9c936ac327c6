"""A released model in the place of the one that a config describes: ``evocore train --model llama2-7b``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evocore.config.settings import Setting, Settings, flatten, overlay, put, under

STAYS = frozenset(
    "checkpoint dtype num_chunks residual_in_fp32 enable_qkv_fusion mlp_layer_fusion "
    "embed_split_hidden parallel_output embed_grad_scale drop_rate attn_drop_rate dropout_selective_checkpoint "
    "use_scaled_init init_type embedding_init_std attn_wqkv_init_std attn_other_init_std ffn_uplayer_init_std "
    "ffn_other_init_std out_head_init_std device".split()
)
"""Keys of the block ``model`` that say how a model is trained and computed, not which one it is."""


@dataclass(frozen=True)
class ReleasedModel:
    """What takes the place of ``model_type`` and of the block ``model``.

    Attributes:
        name: of the model.
        model_type: its family.
        values: of the block.
    """

    name: str
    model_type: str
    values: Mapping[str, Any]


def put_released(settings: Settings, released: ReleasedModel) -> str:
    """Let ``settings`` describe a released model; returns a note.

    What a config says of the model goes, but for ``STAYS``; so does a model of Hugging Face.
    """
    source = f"--model {released.name}"
    kept = [key for key in under(settings, "model") if key.partition(".")[2] in STAYS]
    gone = [key for key in settings if key.partition(".")[0] in ("model", "hf") and key not in kept]
    for key in gone:
        del settings[key]
    put(settings, "model_type", Setting(released.model_type, source))
    overlay(settings, flatten({"model": dict(released.values)}, source))
    stays = f"; {', '.join(kept)} stay{'s' if len(kept) == 1 else ''}" if kept else ""
    return f"{source}: {released.model_type} with its released sizes in the place of the config's model{stays}"
