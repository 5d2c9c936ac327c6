"""``attention`` by FlashAttention 3 (Shah et al., 2024), for Hopper, built from flash-attention's source."""

from importlib import import_module

from evocore.kernels.attention.packed import packed_attention
from evocore.ops.attention import Attention


def attention() -> Attention:
    """The kernel. Whether its deterministic mode is one depends on the day it was built, so it is not asked for."""
    return packed_attention(import_module("flash_attn_interface").flash_attn_varlen_func)
