"""Llama 3 and its successors: Llama 2's block, angles stretched for long documents, small ones with a tied head."""

from __future__ import annotations

from typing import Any

from evocore.models.decoder.hugging_face import width_settings
from evocore.models.llama2 import build, from_hugging_face, to_hugging_face, weights

__all__ = ["SIZES", "build", "from_hugging_face", "to_hugging_face", "weights"]


def _size(hidden: int, layers: int, heads: int, width: int, factor: float = 0.0, **more: Any) -> dict[str, Any]:
    """Of the first release without a ``factor``, whose angles are not stretched."""
    scaling: dict[str, Any] = dict(max_position_embeddings=8192)
    if factor:
        options = dict(original_max_position_embeddings=8192, low_freq_factor=1.0, high_freq_factor=4.0)
        scaling = dict(
            max_position_embeddings=131072, rope_type="llama3", rope_scaling_factor=factor, rope_kwargs=options
        )
    return dict(
        vocab_size=128256,
        hidden_size=hidden,
        num_layers=layers,
        num_attention_heads=heads,
        num_kv_attention_heads=8,
        layer_norm_epsilon=1e-5,
        rope_base=500000.0,
        qk_interleaved=False,
        **width_settings(hidden, width),
        **scaling,
        **more,
    )


SIZES: dict[str, dict[str, Any]] = {
    "llama3-8b": _size(4096, 32, 32, 14336),
    "llama3-70b": _size(8192, 80, 64, 28672),
    "llama3.1-8b": _size(4096, 32, 32, 14336, 8.0),
    "llama3.1-70b": _size(8192, 80, 64, 28672, 8.0),
    "llama3.1-405b": _size(16384, 126, 128, 53248, 8.0),
    "llama3.2-1b": _size(2048, 16, 32, 8192, 32.0, tie_word_embeddings=True),
    "llama3.2-3b": _size(3072, 28, 24, 8192, 32.0, tie_word_embeddings=True),
    "llama3.3-70b": _size(8192, 80, 64, 28672, 8.0),
}
