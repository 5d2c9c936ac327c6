"""The decoder: embedding, pre-norm blocks over a residual stream, final norm, head and loss.

Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evocore.models.decoder.attention import SelfAttention
from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.feed_forward import FeedForward
from evocore.models.decoder.mixture import MixtureOfExperts
from evocore.models.decoder.rope import RotaryAngles
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.experts import RoutedExperts
from evocore.nn.family import AttentionShape
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear, RMSNorm
from evocore.nn.router import Scorer
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
        if spec.mixture is None or layer < spec.mixture.dense_layers:
            self.feed_forward: FeedForward | MixtureOfExperts = FeedForward(spec, layer)
        else:
            self.feed_forward = MixtureOfExperts(spec, spec.mixture, layer)

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
        if spec.tied:
            self.output.weight = self.tok_embeddings.weight
        self.angles = RotaryAngles(spec.head_dim, spec.rope_base)
        self._recomputed = frozenset(range(spec.recompute_layers))

    def stage(self, chunks: Sequence[range]) -> Self:
        """A model of the blocks in ``chunks`` alone, which are the same modules as here, under the same names.

        It has the embedding if block 0 is among them, and the last norm and the head if the last block is; the
        embedding as well if the head's weight is tied to it. Blocks are recomputed in the same proportion in each
        chunk, the first ones.
        """
        part, layers = copy.copy(self), self.spec.layers
        part._modules = dict(self._modules)
        part.layers = nn.ModuleList()
        recomputed: set[int] = set()
        for chunk in chunks:
            before, after = (edge * self.spec.recompute_layers // layers for edge in (chunk.start, chunk.stop))
            recomputed.update(chunk[: after - before])
            for index in chunk:
                part.layers.add_module(str(index), self.layers.get_submodule(str(index)))
        part._recomputed = frozenset(recomputed)
        first, last = (any(block in chunk for chunk in chunks) for block in (0, layers - 1))
        if not first and not (last and self.spec.tied):
            del part.tok_embeddings
        if not last:
            del part.norm, part.output
        return part

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        documents: CuSeqlens,
        cache: KeyValueCache | None = None,
        *,
        layers: range | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Final hidden states ``[T, D]``, or what is carried on from the last of ``layers``.

        Args:
            tokens_T: int64 token ids.
            positions_T: int64 position of each token in its document.
            documents: where documents start and end.
            cache: keys and values of earlier tokens; this pass's tokens are added.
            layers: the blocks to run; all if left out. The first one begins with the embedding, the last one ends
                with the norm.
            carried: what the block before them has yielded, where that is not the embedding.
        """
        if cache is not None:
            cache.extend(documents)
        layers = range(self.spec.layers) if layers is None else layers
        angles = self.angles(positions_T)
        x_TD, residual_TD = (self._embed(tokens_T), None) if carried is None else (carried[0], _second(carried))
        for name, block in self.layers.named_children():
            if int(name) not in layers:
                continue
            if int(name) in self._recomputed and torch.is_grad_enabled():
                x_TD, residual_TD = checkpoint(
                    block, x_TD, residual_TD, angles, documents, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x_TD, residual_TD = block(x_TD, residual_TD, angles, documents, cache)
        if layers.stop == self.spec.layers:
            hidden_TD: Tensor = self.norm(x_TD, residual_TD)[0]
            return hidden_TD
        assert residual_TD is not None  # there is one behind every block
        # The sum with which the next norm begins is one tensor if both are of one dtype.
        return (x_TD + residual_TD,) if x_TD.dtype == residual_TD.dtype else (x_TD, residual_TD)

    def carried(self, tokens: int) -> tuple[Tensor, ...]:
        """Tensors on the meta device like those that ``forward`` carries on between two blocks."""
        numerics = self.spec.numerics
        dtypes = dict.fromkeys([numerics.dtype, numerics.residual_dtype])
        return tuple(torch.empty(tokens, self.spec.hidden, dtype=dtype, device="meta") for dtype in dtypes)

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
        return _weights(self)

    def recomputed_matmul_parameters(self) -> int:
        """Those of the blocks that compute their activations again.

        Recomputation stops at the last activation that backward needs, the input of the down projection, so that this
        last product is not repeated; of experts, it is their results.
        """
        blocks = [
            block
            for name, block in self.layers.named_children()
            if int(name) in self._recomputed and isinstance(block, Block)
        ]
        return sum(_weights(block) - _last_product(block.feed_forward) for block in blocks)

    def attention_shapes(self) -> list[AttentionShape]:
        return [AttentionShape(self.spec.heads, self.spec.head_dim)] * len(self.layers)

    def recomputed_attention_layers(self) -> int:
        return len(self._recomputed)

    def _embed(self, tokens_T: Tensor) -> Tensor:
        x_TD: Tensor = self.tok_embeddings(tokens_T)
        scale = self.spec.embed_grad_scale
        return x_TD if scale == 1 else x_TD * scale + x_TD.detach() * (1 - scale)


def _weights(module: nn.Module) -> int:
    """Those that a token is multiplied with: of experts, as many as it visits."""
    total = 0
    for layer in module.modules():
        if isinstance(layer, Linear | Scorer):
            total += layer.weight.numel()
        elif isinstance(layer, RoutedExperts):
            total += layer.top_k * layer.parameters_of_one()
    return total


def _last_product(feed_forward: FeedForward | MixtureOfExperts) -> int:
    """Weights of a product whose result no gradient depends on."""
    last = feed_forward if isinstance(feed_forward, FeedForward) else feed_forward.last
    return 0 if last is None else last.w2.weight.numel()


def _second(carried: tuple[Tensor, ...]) -> Tensor | None:
    return carried[1] if len(carried) > 1 else None


def _norm(spec: DecoderSpec) -> RMSNorm:
    return RMSNorm(
        spec.hidden,
        eps=spec.norm_eps,
        dtype=spec.numerics.dtype,
        weight_dtype=spec.numerics.norm_dtype,
        residual_dtype=spec.numerics.residual_dtype,
    )
