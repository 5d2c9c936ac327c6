"""What a plug-in says about a model family, before any of its modules is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:  # listing families must not wait for torch
    import torch
    from torch import Tensor, nn

    from evocore.ops.attention import CuSeqlens
    from evocore.ops.cross_entropy import TokenLoss


@dataclass(frozen=True)
class Numerics:
    """In which dtypes a model is built.

    Attributes:
        dtype: of weights and activations.
        norm_dtype: of the weights of the norms.
        residual_dtype: of the residual stream.
    """

    dtype: torch.dtype
    norm_dtype: torch.dtype
    residual_dtype: torch.dtype


@dataclass(frozen=True)
class AttentionShape:
    """What the cost of one layer's attention depends on."""

    heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None


class LanguageModel(Protocol):
    """What training and generation ask of a model; ``nn.Module`` besides."""

    def forward(
        self,
        tokens_T: Tensor,
        positions_T: Tensor,
        documents: CuSeqlens,
        cache: Any = None,
        *,
        layers: range | None = None,
        carried: tuple[Tensor, ...] | None = None,
    ) -> Tensor | tuple[Tensor, ...]:
        """Final hidden states ``[T, D]``, normalised, ready for the head.

        A pipeline names ``layers`` to run only these: they go on from what was ``carried`` to them, unless they are
        the first, and return what is carried on to the next, unless they are the last.
        """
        ...

    def stage(self, chunks: Sequence[range]) -> Self:
        """The model with the layers in ``chunks`` alone, which keep their names and stay shared with this one.

        It has what comes before the first layer, or after the last, if it has that layer.
        """
        ...

    def carried(self, tokens: int) -> tuple[Tensor, ...]:
        """Tensors on the meta device like those that ``forward`` carries from one layer to the next."""
        ...

    def loss(
        self,
        hidden_TD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        """As the contract of ``linear_cross_entropy``, with the model's own head."""
        ...

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """``[T, V]`` scores of the next token."""
        ...

    def make_cache(self, sequences: int, capacity: int, device: torch.device) -> Any:
        """An empty key-value cache for ``forward``."""
        ...

    def matmul_parameters(self) -> int:
        """Weights that each token is multiplied with in the forward pass (the head counts, the embedding not)."""
        ...

    def recomputed_matmul_parameters(self) -> int:
        """Those that are used a second time in backward because activations were dropped."""
        ...

    def attention_shapes(self) -> list[AttentionShape]:
        """One entry per layer."""
        ...

    def recomputed_attention_layers(self) -> int:
        """How many of these layers are computed a second time."""
        ...


@dataclass(frozen=True)
class ModelFamily:
    """A family of models that share an architecture.

    Attributes:
        name: what ``model_type`` in a config names, e.g. ``"INTERNLM2"``.
        target: ``"module:function"``; called as ``function(settings, numerics)`` under a meta device with the
            config's ``model`` block as a mapping, it returns the model.
        aliases: other spellings of ``model_type``.
        description: one line.
    """

    name: str
    target: str
    aliases: tuple[str, ...] = ()
    description: str = ""

    def build(self, settings: Mapping[str, Any], numerics: Numerics) -> nn.Module:
        """The model on the meta device: shapes without memory."""
        import torch

        module, _, function = self.target.partition(":")
        with torch.device("meta"):
            return getattr(import_module(module), function)(settings, numerics)  # type: ignore[no-any-return]
