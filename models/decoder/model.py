"""The decoder: embedding, pre-norm blocks over a residual stream, final norm, head and loss.

Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evocore.models.decoder.attention import SelfAttention
from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.feed_forward import FeedForward
from evocore.models.decoder.rope import RotaryAngles
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.family import AttentionShape
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear, RMSNorm
from evocore.nn.roles import Role
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import TokenLoss

Angles = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Attention and MLP, each behind a norm that also adds what came before to the residual stream."""

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.attention_norm = _norm(spec)
        self.attention = SelfAttention(spec, layer)
        self.ffn_norm = _norm(spec)
        self.feed_forward = FeedForward(spec, layer)

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
        normed_TD, residual_TD = self.ffn_norm(self.attention(normed_TD, angles, documents, cache), residual_TD)
        return self.feed_forward(normed_TD), residual_TD


class Decoder(nn.Module):
    """A causal language model; see ``evocore.nn.family.LanguageModel`` for what the methods promise."""

    output: Head

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        dtype = spec.numerics.dtype
        self.tok_embeddings = Embedding(spec.vocab, spec.hidden, dtype=dtype, init_std=spec.init.embedding)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(spec.layers))
        self.norm = _norm(spec)
        self.output = Head(spec.hidden, spec.vocab, dtype=dtype, init_std=spec.init.head, normalised=spec.norm_head)
        self.angles = RotaryAngles(spec.head_dim, spec.rope_base)

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, documents: CuSeqlens, cache: KeyValueCache | None = None
    ) -> Tensor:
        """Final hidden states ``[T, D]``.

        Args:
            tokens_T: int64 token ids.
            positions_T: int64 position of each token in its document.
            documents: where documents start and end.
            cache: keys and values of earlier tokens; this pass's tokens are added.
        """
        if cache is not None:
            cache.extend(documents)
        x_TD, residual_TD, angles = self._embed(tokens_T), None, self.angles(positions_T)
        for index, block in enumerate(self.layers):
            if index < self.spec.recompute_layers and torch.is_grad_enabled():
                x_TD, residual_TD = checkpoint(
                    block, x_TD, residual_TD, angles, documents, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_TD, residual_TD = block(x_TD, residual_TD, angles, documents, cache)
        hidden_TD: Tensor = self.norm(x_TD, residual_TD)[0]
        return hidden_TD

    def loss(
        self,
        hidden_TD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        """Cross-entropy of the next token, without the ``[T, V]`` logits."""
        return self.output.loss(hidden_TD, labels_T, weights_T, label_smoothing=label_smoothing, z_loss=z_loss)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """``[T, V]`` in the model's dtype."""
        scores_TV: Tensor = self.output(hidden_TD)
        return scores_TV

    def make_cache(self, sequences: int, capacity: int, device: torch.device) -> KeyValueCache:
        """An empty cache for ``sequences`` of up to ``capacity`` tokens."""
        spec = self.spec
        return KeyValueCache(
            layers=spec.layers,
            sequences=sequences,
            capacity=capacity,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            dtype=spec.numerics.dtype,
            device=device,
        )

    def matmul_parameters(self) -> int:
        return sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, Linear))

    def recomputed_matmul_parameters(self) -> int:
        """Those of the blocks that compute their activations again.

        Recomputation stops at the last activation that backward needs, the input of the down projection, so that this
        last product is not repeated.
        """
        blocks = list(self.layers)[: self.spec.recompute_layers]
        layers = (layer for block in blocks for layer in block.modules() if isinstance(layer, Linear))
        return sum(layer.weight.numel() for layer in layers if layer.role is not Role.DOWN)

    def attention_shapes(self) -> list[AttentionShape]:
        return [AttentionShape(self.spec.heads, self.spec.head_dim)] * self.spec.layers

    def recomputed_attention_layers(self) -> int:
        return self.spec.recompute_layers

    def _embed(self, tokens_T: Tensor) -> Tensor:
        x_TD: Tensor = self.tok_embeddings(tokens_T)
        scale = self.spec.embed_grad_scale
        return x_TD if scale == 1 else x_TD * scale + x_TD.detach() * (1 - scale)


def _norm(spec: DecoderSpec) -> RMSNorm:
    return RMSNorm(
        spec.hidden,
        eps=spec.norm_eps,
        dtype=spec.numerics.dtype,
        weight_dtype=spec.numerics.norm_dtype,
        residual_dtype=spec.numerics.residual_dtype,
    )
