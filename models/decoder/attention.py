"""Causal self-attention with rotary positions and grouped queries.

Shapes: T tokens, D hidden, N query heads, K key-value heads, H head size, G = N / K, P = H / 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.layers import Linear, Norm
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.ops.attention import AttentionBlockRequest, AttentionRequest, CuSeqlens
from evocore.ops.kernel import Request
from evocore.ops.rotary import RotaryRequest


class SelfAttention(Projecting):
    """``wo(attention(rotary(q), rotary(k), v))``, where q and k may be normalised head by head before.

    Attributes:
        heads, kv_heads: of the projections.
        head_parts: ranks among which ``attention`` itself is divided by heads while projections are not.
        context_parts: ranks among which it is divided by context: it then goes block by block of keys.
    """

    divided: ClassVar[tuple[str, ...]] = ("heads", "kv_heads")
    wq: Linear
    wk: Linear
    wv: Linear
    attention: Callable[..., Tensor]
    rotary: Callable[..., Tensor]

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.interleaved = layer, spec.rope_interleaved
        self.head_parts = self.context_parts = 1
        self.heads, self.kv_heads, self.head_dim = spec.heads, spec.kv_heads, spec.head_dim
        self.dtype, self.window, self.softcap = spec.numerics.dtype, spec.window(layer), spec.attention_softcap
        named = dict(window=self.window, softcap=self.softcap, scale=spec.attention_scale)
        self._options = {name: value for name, value in named.items() if value is not None}
        options: dict[str, Any] = dict(role=Role.QKV, dtype=self.dtype, init_std=spec.init.qkv, bias=spec.qkv_bias)
        self.fused = spec.fused_qkv
        if self.fused:
            group = [("q", spec.heads // spec.kv_heads * spec.head_dim), ("k", spec.head_dim), ("v", spec.head_dim)]
            rows = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
            self.wqkv = Linear(spec.hidden, rows, segments=group * spec.kv_heads, **options)
        else:
            for name, heads in (("q", spec.heads), ("k", spec.kv_heads), ("v", spec.kv_heads)):
                rows = heads * spec.head_dim
                setattr(self, f"w{name}", Linear(spec.hidden, rows, segments=[(name, rows)], **options))
        self.q_norm = self._head_norm(spec) if spec.head_norms else None
        self.k_norm = self._head_norm(spec) if spec.head_norms else None
        self.wo = Linear(
            spec.heads * spec.head_dim,
            spec.hidden,
            role=Role.OUT,
            dtype=self.dtype,
            init_std=spec.init.residual(spec.init.attention_out, layer),
            bias=spec.out_bias,
        )

    def requests(self) -> dict[str, Request]:
        asked = AttentionRequest if self.context_parts == 1 else AttentionBlockRequest
        kv_heads = max(1, self.kv_heads // self.head_parts)
        return {
            "attention": asked(
                self.dtype,
                self.heads // self.head_parts,
                kv_heads,
                self.head_dim,
                window=self.window,
                softcap=self.softcap,
            ),
            "rotary": RotaryRequest(self.dtype, self.head_dim, self.head_dim // 2, self.interleaved),
        }

    def forward(
        self, x_TD: Tensor, angles: tuple[Tensor, Tensor], documents: CuSeqlens, cache: KeyValueCache | None
    ) -> Tensor:
        q_TNH, k_TKH, v_TKH = self._project(x_TD)
        if self.q_norm is not None and self.k_norm is not None:
            q_TNH, k_TKH = self.q_norm(q_TNH), self.k_norm(k_TKH)
        q_TNH = self.rotary(q_TNH, *angles, interleaved=self.interleaved)
        k_TKH = self.rotary(k_TKH, *angles, interleaved=self.interleaved)
        k_documents = documents
        if cache is not None:
            k_TKH, v_TKH = cache.append(self.layer, k_TKH, v_TKH, documents)
            k_documents = cache.documents
        mixed_TNH = self.attention(
            q_TNH, k_TKH, v_TKH, q_documents=documents, k_documents=k_documents, **self._options
        )
        return self.fan_in(mixed_TNH.flatten(1), self.wo)

    def _head_norm(self, spec: DecoderSpec) -> Norm:
        return Norm(
            spec.head_dim,
            role=Role.HEAD_NORM,
            eps=spec.norm_eps,
            dtype=self.dtype,
            weight_dtype=spec.numerics.norm_dtype,
            unit_offset=spec.unit_offset,
        )

    def _project(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if not self.fused:
            q, k, v = self.fan_out(x_TD, [self.wq, self.wk, self.wv])
            return (
                q.unflatten(1, (self.heads, self.head_dim)),
                k.unflatten(1, (self.kv_heads, self.head_dim)),
                v.unflatten(1, (self.kv_heads, self.head_dim)),
            )
        group = self.heads // self.kv_heads
        qkv = self.fan_out(x_TD, [self.wqkv])[0].unflatten(1, (self.kv_heads, group + 2, self.head_dim))
        q, k, v = qkv.split([group, 1, 1], dim=2)
        return q.flatten(1, 2), k.squeeze(2), v.squeeze(2)
