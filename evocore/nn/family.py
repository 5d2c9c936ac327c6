"""What a plug-in says about a model family, before any of its modules is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, Self

from evocore.errors import UserError

if TYPE_CHECKING:  # listing families must not wait for torch
    import torch
    from torch import Tensor, nn

    from evocore.nn.blocks import RunBlock
    from evocore.nn.weight_map import WeightMap
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
    """What the cost of one layer's attention depends on.

    ``value_dim`` is the size of a value, None if it is that of a query or key.
    """

    heads: int
    head_dim: int
    causal: bool = True
    window: int | None = None
    value_dim: int | None = None


class LanguageModel(Protocol):
    """What training and generation ask of a model; ``nn.Module`` besides.

    Attributes:
        run_block: through which ``forward`` runs its layers.
    """

    run_block: RunBlock

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
        """One entry per layer, first those that are computed a second time."""
        ...

    def recomputed_attention_layers(self) -> int:
        """How many of these layers are computed a second time."""
        ...

    def recomputed_blocks(self) -> frozenset[int]:
        """Which of the blocks that are here are computed a second time, counted from 0."""
        ...


class PredictsFurther(LanguageModel, Protocol):
    """A model that learns to predict tokens behind the next one as well, K of them.

    Attributes:
        further: K, here: of a pipeline's stages only the last one's is not 0.
    """

    @property
    def further(self) -> int: ...

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
        """The losses of all K predictions.

        Args:
            hidden_TD: as ``forward`` returns them.
            tokens_KT, labels_KT: for k from 1 to K, the token and the label k places further in the document; any
                token where there is none, and a label that is ignored.
            others: as of ``forward`` and ``loss``.
        """
        ...

    def used_again(self) -> list[str]:
        """Names of the weights outside of blocks that this needs a further time."""
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
        hugging_face: values of ``model_type`` in the ``config.json`` of Hugging Face's models that it reads.

    The module of ``target`` may hold more, by these names; what needs one that is missing says so:

    - ``SIZES``: the released sizes, name -> ``model`` block;
    - ``from_hugging_face(config) -> settings`` and ``to_hugging_face(settings) -> config``: between a ``config.json``
      and a ``model`` block;
    - ``weights(spec) -> WeightMap``: to the tensors of Hugging Face's models, for the ``spec`` of a model;
    - ``internevo_weights(spec) -> WeightMap``: to those of InternEvo's checkpoints.
    """

    name: str
    target: str
    aliases: tuple[str, ...] = ()
    description: str = ""
    hugging_face: tuple[str, ...] = ()

    def build(self, settings: Mapping[str, Any], numerics: Numerics) -> nn.Module:
        """The model on the meta device: shapes without memory."""
        import torch

        function = self.target.partition(":")[2]
        with torch.device("meta"):
            return getattr(self._module(), function)(settings, numerics)  # type: ignore[no-any-return]

    def has(self, name: str) -> bool:
        """Whether the family's module has one of these."""
        return hasattr(self._module(), name)

    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        """The released sizes: name -> values of the ``model`` block; none if the family lists none."""
        found: Mapping[str, Mapping[str, Any]] = getattr(self._module(), "SIZES", {})
        return found

    def weights(self, model: nn.Module) -> WeightMap:
        """The map between a model of this family and Hugging Face's tensors.

        Raises:
            UserError: the family has none; so of the functions below.
        """
        found: WeightMap = self._need("weights")(model.spec)
        return found

    def internevo_weights(self, model: nn.Module) -> WeightMap:
        """The map between a model of this family and the tensors of InternEvo's checkpoints."""
        found: WeightMap = self._need("internevo_weights")(model.spec)
        return found

    def from_hugging_face(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The ``model`` block for a ``config.json``."""
        found: dict[str, Any] = self._need("from_hugging_face")(config)
        return found

    def to_hugging_face(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The ``config.json`` for a ``model`` block."""
        found: dict[str, Any] = self._need("to_hugging_face")(settings)
        return found

    def _module(self) -> ModuleType:
        return import_module(self.target.partition(":")[0])

    def _need(self, name: str) -> Any:
        module, _, build = self.target.partition(":")
        if not self.has(name):
            raise UserError(
                f"the model family {self.name} cannot be converted: {module} has no function {name!r}",
                "a family with a table of weights (`evocore models` lists the families)",
                f"write {name} beside {build}; evocore.nn.family.ModelFamily says what it does",
            )
        return getattr(self._module(), name)
