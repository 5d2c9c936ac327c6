"""A block of the decoder: attention and MLP over a residual stream.

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from evocore.models.decoder.attention import SelfAttention
from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.feed_forward import FeedForward
from evocore.models.decoder.latent_attention import LatentAttention
from evocore.models.decoder.mixture import MixtureOfExperts
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.layers import Norm, RMSNorm
from evocore.ops.attention import CuSeqlens

Angles = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and MLP, each behind a norm that also adds what came before to the residual stream.

    What they compute may go through a norm of its own before it is added.
    """

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = residual_norm(spec)
        if spec.latent is None:
            self.attention: SelfAttention | LatentAttention = SelfAttention(spec, layer)
        else:
            self.attention = LatentAttention(spec, spec.latent, layer)
        self.attention_post_norm = plain_norm(spec) if spec.post_norms else None
        self.ffn_norm = residual_norm(spec)
        if spec.mixture is None or layer in spec.mixture.dense_layers:
            self.feed_forward: FeedForward | MixtureOfExperts = FeedForward(spec, layer)
        else:
            self.feed_forward = MixtureOfExperts(spec, spec.mixture, layer)
        self.ffn_post_norm = plain_norm(spec) if spec.post_norms else None

    def forward(
        self,
        x_TD: Tensor,
        residual_TD: Tensor | None,
        angles: Angles,
        documents: CuSeqlens,
        cache: KeyValueCache | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take what the block before computed and the residual stream without it; return the same pair."""
        normed_TD, residual_TD = self.attention_norm(x_TD, residual_TD)
        mixed_TD = self.attention(normed_TD, angles, documents, cache)
        if self.attention_post_norm is not None:
            mixed_TD = self.attention_post_norm(mixed_TD)
        normed_TD, residual_TD = self.ffn_norm(mixed_TD, residual_TD)
        out_TD = self.feed_forward(normed_TD)
        return out_TD if self.ffn_post_norm is None else self.ffn_post_norm(out_TD), residual_TD


def residual_norm(spec: DecoderSpec) -> RMSNorm:
    """Of the residual stream and what is added to it."""
    return RMSNorm(
        spec.hidden,
        eps=spec.norm_eps,
        dtype=spec.numerics.dtype,
        weight_dtype=spec.numerics.norm_dtype,
        residual_dtype=spec.numerics.residual_dtype,
        unit_offset=spec.unit_offset,
    )


def plain_norm(spec: DecoderSpec) -> Norm:
    """Of the hidden width, by itself."""
    return Norm(
        spec.hidden,
        eps=spec.norm_eps,
        dtype=spec.numerics.dtype,
        weight_dtype=spec.numerics.norm_dtype,
        unit_offset=spec.unit_offset,
    )
