"""The smallest config that loads and runs."""

from __future__ import annotations

from typing import Any


def smallest() -> dict[str, Any]:
    return {
        "model_type": "INTERNLM2",
        "data": {"seq_len": 64, "micro_bsz": 2, "micro_num": 4, "total_steps": 10},
        "model": {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 128, "mlp_ratio": 2.0},
        "ckpt": {"enable_save_ckpt": False},
    }
