"""The smallest config that loads and runs, and what a constraint has to say of one that breaks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evocore.errors import UserError

FAMILIES = {"INTERNLM2", "LLAMA2"}
LATENT = [
    "model.kv_lora_rank=8",
    "model.qk_nope_head_dim=8",
    "model.qk_rope_head_dim=4",
    "model.v_head_dim=8",
    "model.num_kv_attention_heads=4",
]


def smallest() -> dict[str, Any]:
    return {
        "model_type": "INTERNLM2",
        "data": {"seq_len": 64, "micro_bsz": 2, "micro_num": 4, "total_steps": 10},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 128, "mlp_ratio": 2.0},
        "ckpt": {"enable_save_ckpt": False},
    }


def reported(problems: Sequence[UserError], wrong: str) -> None:
    """Exactly one of the problems begins like this, and says what was expected and how to mend it."""
    matching = [one for one in problems if one.wrong.startswith(wrong)]
    assert len(matching) == 1, [one.wrong for one in problems]
    assert matching[0].expected and matching[0].fix
