"""``attention`` by the package flash-attn-4, compiled for Blackwell when a shape is first met."""

from __future__ import annotations

from importlib import import_module

from evocore.kernels.attention.packed import packed_attention
from evocore.ops.attention import Attention


def attention(deterministic: bool) -> Attention:
    """The kernel; if ``deterministic``, backward adds up in a fixed order."""
    call = import_module("flash_attn.cute.interface").flash_attn_varlen_func
    return packed_attention(call, unlimited=None, deterministic=deterministic)
