"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads come from one small vector.

``wkv_a`` makes two things of each token: a latent, from which ``wkv_b`` makes the keys and values of all heads, and a
key that all heads share, the only one that is rotated. A cache need not keep more than these. A head's key is its own
followed by the shared one, its query likewise: in part without a position, in part rotated. Queries may go through a
latent of their own.

Shapes: T tokens, S key tokens, D hidden, N heads, H size of a query or key, of which R are rotated, V size of a
value, L latent of keys and values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.spec import DecoderSpec, LatentSpec
from evocore.nn.layers import Linear, Norm
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.ops.attention import AttentionBlockRequest, AttentionRequest, CuSeqlens
from evocore.ops.kernel import Request
from evocore.ops.rotary import RotaryRequest


class LatentAttention(Projecting):
    """As ``SelfAttention``, with fewer things to keep of each token.

    The weights that make latents are not divided among the ranks of a tensor group; those that read latents are, by
    heads.

    Attributes:
        heads: of the projections.
        head_parts, context_parts: as of ``SelfAttention``.
        shared: features of the key that all heads share.
    """

    divided: ClassVar[tuple[str, ...]] = ("heads",)
    attention: Callable[..., Tensor]
    rotary: Callable[..., Tensor]

    def __init__(self, spec: DecoderSpec, latent: LatentSpec, layer: int) -> None:
        super().__init__()
        self.layer, self.interleaved, self.latent = layer, spec.rope_interleaved, latent
        self.head_parts = self.context_parts = 1
        self.heads, self.head_dim, self.shared = spec.heads, spec.head_dim, latent.rope
        self.dtype, self.window, self.softcap = spec.numerics.dtype, spec.window(layer), spec.attention_softcap
        scale = spec.attention_scale or spec.head_dim**-0.5
        named = dict(window=self.window, softcap=self.softcap, scale=scale * spec.rope.latent_scale)
        self._options = {name: value for name, value in named.items() if value is not None}
        options: dict[str, Any] = dict(dtype=self.dtype, init_std=spec.init.qkv)
        whole: dict[str, Any] = dict(role=Role.REPLICATED, bias=spec.qkv_bias, **options)
        by_head: dict[str, Any] = dict(role=Role.QKV, **options)
        queries, pairs = spec.heads * spec.head_dim, spec.heads * (latent.nope + latent.value)
        self.wq_a = Linear(spec.hidden, latent.q_rank, **whole) if latent.q_rank else None
        self.wkv_a = Linear(spec.hidden, latent.kv_rank + latent.rope, **whole)
        self.q_norm = self._norm(spec, latent.q_rank) if latent.q_rank else None
        self.kv_norm = self._norm(spec, latent.kv_rank)
        self.wq_b = Linear(latent.q_rank or spec.hidden, queries, segments=[("q", queries)], **by_head)
        self.wkv_b = Linear(latent.kv_rank, pairs, segments=[("kv", pairs)], **by_head)
        self.wo = Linear(
            spec.heads * latent.value,
            spec.hidden,
            role=Role.OUT,
            dtype=self.dtype,
            init_std=spec.init.residual(spec.init.attention_out, layer),
            bias=spec.out_bias,
        )

    def used_together(self) -> list[tuple[Linear, ...]]:
        if self.wq_a is None:
            return [(self.wq_b,), (self.wkv_a,), (self.wkv_b,), (self.wo,)]
        return [(self.wq_a, self.wkv_a), (self.wq_b,), (self.wkv_b,), (self.wo,)]

    def requests(self) -> dict[str, Request]:
        asked = AttentionRequest if self.context_parts == 1 else AttentionBlockRequest
        heads, size = self.heads // self.head_parts, self.latent.rope
        return {
            "attention": asked(self.dtype, heads, heads, self.head_dim, window=self.window, softcap=self.softcap),
            "rotary": RotaryRequest(self.dtype, size, size // 2, self.interleaved),
        }

    def forward(
        self, x_TD: Tensor, angles: tuple[Tensor, Tensor], documents: CuSeqlens, cache: KeyValueCache | None
    ) -> Tensor:
        latent = self.latent
        q_TF, compressed_TF = self._down(x_TD)
        latent_TL, key_TR = compressed_TF.split([latent.kv_rank, latent.rope], dim=1)
        own_TNH, turned_TNR = q_TF.unflatten(1, (self.heads, self.head_dim)).split([latent.nope, latent.rope], dim=2)
        q_TNH = torch.cat([own_TNH, self.rotary(turned_TNR, *angles, interleaved=self.interleaved)], dim=2)
        latent_SL = self.kv_norm(latent_TL)
        key_S1R = self.rotary(self.share(key_TR).unsqueeze(1), *angles, interleaved=self.interleaved)
        k_documents = documents
        if cache is not None:
            latent_S1L, key_S1R = cache.append(self.layer, latent_SL.unsqueeze(1), key_S1R, documents)
            latent_SL, k_documents = latent_S1L.squeeze(1), cache.documents
        pairs_SNF = self.fan_out(latent_SL, [self.wkv_b])[0].unflatten(1, (self.heads, latent.nope + latent.value))
        own_SNH, v_SNV = pairs_SNF.split([latent.nope, latent.value], dim=2)
        k_SNH = torch.cat([own_SNH, key_S1R.expand(-1, self.heads, -1)], dim=2)
        # Kernels take values as wide as keys.
        v_SNH = F.pad(v_SNV, (0, self.head_dim - latent.value))
        mixed_TNH = self.attention(
            q_TNH, k_SNH, v_SNH, q_documents=documents, k_documents=k_documents, **self._options
        )
        return self.fan_in(mixed_TNH[..., : latent.value].flatten(1), self.wo)

    def _down(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of this rank's heads, and what a cache would keep, not yet normalised and rotated."""
        if self.wq_a is None or self.q_norm is None:
            return self.fan_out(x_TD, [self.wq_b])[0], self.fan_out(x_TD, [self.wkv_a])[0]
        latent_TL, compressed_TF = self.fan_out(x_TD, [self.wq_a, self.wkv_a])
        return self.fan_out(self.q_norm(latent_TL), [self.wq_b])[0], compressed_TF

    def _norm(self, spec: DecoderSpec, width: int) -> Norm:
        return Norm(
            width,
            eps=self.latent.norm_eps,
            dtype=self.dtype,
            weight_dtype=spec.numerics.norm_dtype,
            unit_offset=spec.unit_offset,
        )
