"""Causal self-attention with rotary positions and grouped queries.

Shapes: T tokens, D hidden, N query heads, K key-value heads, H head size, G = N / K, P = H / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.binding import UsesOps
from evocore.nn.layers import Linear
from evocore.nn.roles import Role
from evocore.ops.attention import AttentionRequest, CuSeqlens
from evocore.ops.kernel import Request
from evocore.ops.rotary import RotaryRequest


class SelfAttention(UsesOps):
    """``wo(attention(rotary(q), rotary(k), v))``."""

    attention: Callable[..., Tensor]
    rotary: Callable[..., Tensor]

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.interleaved = layer, spec.rope_interleaved
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.dtype = spec.numerics.dtype
        options: dict[str, Any] = dict(role=Role.QKV, dtype=self.dtype, init_std=spec.init.qkv, bias=spec.qkv_bias)
        self.fused = spec.fused_qkv
        if self.fused:
            self.wqkv = Linear(spec.hidden, (spec.heads + 2 * spec.kv_heads) * spec.head_dim, **options)
        else:
            self.wq = Linear(spec.hidden, spec.heads * spec.head_dim, **options)
            self.wk = Linear(spec.hidden, spec.kv_heads * spec.head_dim, **options)
            self.wv = Linear(spec.hidden, spec.kv_heads * spec.head_dim, **options)
        self.wo = Linear(
            spec.heads * spec.head_dim,
            spec.hidden,
            role=Role.OUT,
            dtype=self.dtype,
            init_std=spec.init.residual(spec.init.attention_out, layer),
            bias=spec.out_bias,
        )

    def requests(self) -> dict[str, Request]:
        return {
            "attention": AttentionRequest(self.dtype, self.heads, self.kv_heads, self.head_dim),
            "rotary": RotaryRequest(self.dtype, self.head_dim, self.head_dim // 2, self.interleaved),
        }

    def forward(
        self, x_TD: Tensor, angles: tuple[Tensor, Tensor], documents: CuSeqlens, cache: KeyValueCache | None
    ) -> Tensor:
        q_TNH, k_TKH, v_TKH = self._project(x_TD)
        q_TNH = self.rotary(q_TNH, *angles, interleaved=self.interleaved)
        k_TKH = self.rotary(k_TKH, *angles, interleaved=self.interleaved)
        k_documents = documents
        if cache is not None:
            k_TKH, v_TKH = cache.append(self.layer, k_TKH, v_TKH, documents)
            k_documents = cache.documents
        mixed_TNH = self.attention(q_TNH, k_TKH, v_TKH, q_documents=documents, k_documents=k_documents)
        out_TD: Tensor = self.wo(mixed_TNH.flatten(1))
        return out_TD

    def _project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.fused:
            return (
                self.wq(x_TD).unflatten(1, (self.heads, self.head_dim)),
                self.wk(x_TD).unflatten(1, (self.kv_heads, self.head_dim)),
                self.wv(x_TD).unflatten(1, (self.kv_heads, self.head_dim)),
            )
        group = self.heads // self.kv_heads
        qkv = self.wqkv(x_TD).unflatten(1, (self.kv_heads, group + 2, self.head_dim))
        q, k, v = qkv.split([group, 1, 1], dim=2)
        return q.flatten(1, 2), k.squeeze(2), v.squeeze(2)
