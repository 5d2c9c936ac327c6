"""The decoder: embedding, pre-norm blocks over a residual stream, final norm, head and loss.

Shapes: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

from evocore.models.decoder.block import Block, residual_norm
from evocore.models.decoder.cache import KeyValueCache
from evocore.models.decoder.feed_forward import FeedForward
from evocore.models.decoder.prediction import Predictor
from evocore.models.decoder.rope import RotaryAngles
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.balance import BalanceOverLayers
from evocore.nn.blocks import RunBlock, first_of_each, run_block
from evocore.nn.experts import RoutedExperts
from evocore.nn.family import AttentionShape
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear
from evocore.nn.router import Router, Scorer
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import TokenLoss


class Decoder(nn.Module):
    """A causal language model; see ``evocore.nn.family.LanguageModel`` for what the methods promise.

    Attributes:
        predictors: what looks further ahead in training, see ``evocore.models.decoder.prediction``.
    """

    output: Head
    run_block: RunBlock

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        dtype = spec.numerics.dtype
        self.tok_embeddings = Embedding(spec.vocab, spec.hidden, dtype=dtype, init_std=spec.init.embedding)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(spec.layers))
        self.norm = residual_norm(spec)
        self.output = Head(
            spec.hidden,
            spec.vocab,
            dtype=dtype,
            init_std=spec.init.head,
            normalised=spec.norm_head,
            softcap=spec.head_softcap,
        )
        self.predictors = nn.ModuleList(Predictor(spec, spec.layers + ahead) for ahead in range(spec.predictors))
        if spec.tied:
            self.output.weight = self.tok_embeddings.weight
        if spec.mixture is not None and spec.mixture.rule.balance_layers:
            _balance_together([module for module in self.layers.modules() if isinstance(module, Router)])
        self.angles = RotaryAngles(spec.rotary_dim, spec.rope_base, spec.rope)
        self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=dtype, device="cpu"))
        self._recomputed = frozenset(range(spec.recompute_layers))
        self.run_block = run_block

    def stage(self, chunks: Sequence[range]) -> Self:
        """A model of the blocks in ``chunks`` alone, which are the same modules as here, under the same names.

        It has the embedding if block 0 is among them, and the last norm, the head and the predictors if the last
        block is; the embedding as well if the head's weight is tied to it or predictors use it. Blocks are recomputed
        in the same proportion in each chunk, the first ones.
        """
        part, layers = copy.copy(self), self.spec.layers
        part._modules = dict(self._modules)
        part.layers = nn.ModuleList()
        for chunk in chunks:
            for index in chunk:
                part.layers.add_module(str(index), self.layers.get_submodule(str(index)))
        part._recomputed = first_of_each(self.spec.recompute_layers, layers, chunks)
        first, last = (any(block in chunk for chunk in chunks) for block in (0, layers - 1))
        if not first and not (last and (self.spec.tied or self.spec.predictors)):
            del part.tok_embeddings
        if not last:
            del part.norm, part.output
            part.predictors = nn.ModuleList()
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
        angles = self.angles(positions_T, documents, None if cache is None else cache.documents)
        x_TD, residual_TD = (self._embed(tokens_T), None) if carried is None else (carried[0], _second(carried))
        for name, block in self.layers.named_children():
            if int(name) not in layers:
                continue
            x_TD, residual_TD = self.run_block(
                block,
                (x_TD, residual_TD),
                (angles, documents, cache),
                layer=int(name),
                recomputed=int(name) in self._recomputed,
            )
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

    @property
    def further(self) -> int:
        return len(self.predictors)

    def further_losses(
        self,
        hidden_TD: Tensor,
        tokens_KT: Sequence[Tensor],
        positions_T: Tensor,
        documents: CuSeqlens,
        labels_KT: Sequence[Tensor],
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> list[TokenLoss]:
        """See ``evocore.nn.family.PredictsFurther``."""
        angles, losses = self.angles(positions_T, documents), []
        for (name, predictor), tokens_T, labels_T in zip(
            self.predictors.named_children(), tokens_KT, labels_KT, strict=True
        ):
            (hidden_TD,) = self.run_block(
                predictor,
                (hidden_TD, self._embed(tokens_T)),
                (angles, documents),
                layer=self.spec.layers + int(name),
                recomputed=self._recomputes_predictors,
            )
            losses.append(
                self.output.loss(hidden_TD, labels_T, weights_T, label_smoothing=label_smoothing, z_loss=z_loss)
            )
        return losses

    def used_again(self) -> list[str]:
        if not self.predictors:
            return []
        return ["tok_embeddings.weight"] if self.spec.tied else ["tok_embeddings.weight", "output.weight"]

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """``[T, V]`` in the model's dtype."""
        scores_TV: Tensor = self.output(hidden_TD)
        return scores_TV

    def make_cache(self, sequences: int, capacity: int, device: torch.device) -> KeyValueCache:
        """An empty cache for ``sequences`` of up to ``capacity`` tokens."""
        spec = self.spec
        heads, sizes = spec.kv_heads, (spec.head_dim, spec.head_dim)
        if spec.latent is not None:
            heads, sizes = 1, (spec.latent.kv_rank, spec.latent.rope)
        return KeyValueCache(
            layers=spec.layers,
            sequences=sequences,
            capacity=capacity,
            kv_heads=heads,
            head_dim=sizes[0],
            value_dim=sizes[1],
            dtype=spec.numerics.dtype,
            device=device,
        )

    def matmul_parameters(self) -> int:
        return _weights(self) + sum(self.output.weight.numel() for _ in self.predictors)

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
        repeated = sum(_weights(block) - _last_product(block) for block in blocks)
        return repeated + (_weights(self.predictors) if self._recomputes_predictors else 0)

    def attention_shapes(self) -> list[AttentionShape]:
        held = [int(name) for name, _ in self.layers.named_children()]
        held += [self.spec.layers + ahead for ahead in range(self.further)]
        layers = sorted(held, key=lambda layer: not self._recomputes(layer))
        windows = [self.spec.window(layer) for layer in layers]
        heads, size = self.spec.heads, self.spec.head_dim
        value = size if self.spec.latent is None else self.spec.latent.value
        return [AttentionShape(heads, size, window=window, value_dim=value) for window in windows]

    def recomputed_attention_layers(self) -> int:
        return len(self._recomputed) + self.further * self._recomputes_predictors

    def recomputed_blocks(self) -> frozenset[int]:
        held = [int(name) for name, _ in self.layers.named_children()]
        held += [self.spec.layers + ahead for ahead in range(self.further)]
        return frozenset(place for place, layer in enumerate(held) if self._recomputes(layer))

    @property
    def _recomputes_predictors(self) -> bool:
        """They are if every block is."""
        return self.spec.recompute_layers == self.spec.layers

    def _recomputes(self, layer: int) -> bool:
        return layer in self._recomputed if layer < self.spec.layers else self._recomputes_predictors

    def _embed(self, tokens_T: Tensor) -> Tensor:
        x_TD: Tensor = self.tok_embeddings(tokens_T)
        scale = self.spec.embed_grad_scale
        if scale != 1:
            x_TD = x_TD * scale + x_TD.detach() * (1 - scale)
        return x_TD if self._embedding_scale == 1 else x_TD * self._embedding_scale


def _balance_together(routers: Sequence[Router]) -> None:
    together = BalanceOverLayers(len(routers))
    for router in routers:
        router.together = together


def _weights(module: nn.Module) -> int:
    """Those that a token is multiplied with: of experts, as many as it visits."""
    total = 0
    for layer in module.modules():
        if isinstance(layer, Linear | Scorer):
            total += layer.weight.numel()
        elif isinstance(layer, RoutedExperts):
            total += layer.top_k * layer.parameters_of_one()
    return total


def _last_product(block: Block) -> int:
    """Weights of a product whose result no gradient depends on."""
    feed_forward = block.feed_forward
    last = feed_forward if isinstance(feed_forward, FeedForward) else feed_forward.last
    return 0 if last is None or block.ffn_post_norm is not None else last.w2.weight.numel()


def _second(carried: tuple[Tensor, ...]) -> Tensor | None:
    return carried[1] if len(carried) > 1 else None
