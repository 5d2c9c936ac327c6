"""``model_type="hf"``: a class of ``transformers`` as it is, for data parallelism, ZeRO and full sharding.

The class computes everything, its logits included; kernels, tensor and pipeline parallelism are not for it. Documents
that are packed into one row are kept apart by ``transformers``: it sees positions that begin anew and makes the mask
that each of its attention implementations needs (block-diagonal for "eager" and "sdpa", lengths for flash attention).
Whether a class really does is tried before the first step, with two documents of a few tokens.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from evocore.errors import UserError
from evocore.hugging_face_class import make_model, read_config
from evocore.nn.binding import UsesOps
from evocore.nn.family import AttentionShape, Numerics
from evocore.nn.roles import Role
from evocore.nn.weight_map import WeightMap
from evocore.nn.weight_rules import same
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import CrossEntropyRequest, TokenLoss
from evocore.ops.kernel import Request


@dataclass(frozen=True)
class ClassSpec:
    """What weight maps ask of a model.

    Attributes:
        names: our names of parameters and buffers -> theirs.
        tied: their names of parameters that are others' as well.
    """

    names: Mapping[str, str]
    tied: tuple[str, ...]


class ClassOfTransformers(UsesOps):
    """A ``PreTrainedModel`` behind ``evocore.nn.family.LanguageModel``.

    Its modules are children of this one, list of blocks by list of blocks, so that full sharding finds the blocks;
    the object itself only calls them.

    Attributes:
        theirs: the object.
    """

    cross_entropy: Callable[..., TokenLoss]

    theirs: Any

    def __init__(self, theirs: Any, dtype: torch.dtype, *, recompute: bool) -> None:
        super().__init__()
        self.__dict__["theirs"] = theirs  # not a child
        self.dtype, self.vocab = dtype, theirs.config.get_text_config().vocab_size
        self._recomputes = recompute
        if "position_ids" not in inspect.signature(theirs.forward).parameters:
            raise UserError(
                f"{type(theirs).__name__} takes no position_ids, so that packed documents cannot be told apart",
                "a class with rotary or learnt positions",
                "write a model family in a plug-in (docs/plugin-guide.md)",
            )
        if recompute:
            # Under its name before transformers 5.
            enable = getattr(theirs, "activation_checkpointing_enable", theirs.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
        prefixes = {}
        for prefix, child in _parts(theirs):
            name = prefix.rpartition(".")[2]
            name = name if not hasattr(self, name) else prefix.replace(".", "_")
            self.add_module(name, child)
            prefixes[name] = prefix
        for module in self.modules():
            _give_role(module)
        own = dict(theirs.named_parameters(remove_duplicate=False)) | dict(theirs.named_buffers())
        persistent = set(theirs.state_dict())
        names = {
            f"{ours}{name.removeprefix(prefix)}": name
            for ours, prefix in prefixes.items()
            for name in own
            if name.startswith(f"{prefix}.") and name in persistent
        }
        held = {name for name, _ in (*self.named_parameters(), *self.named_buffers())}
        tied = tuple(theirs_name for ours, theirs_name in names.items() if ours not in held)
        self.spec = ClassSpec({ours: name for ours, name in names.items() if ours in held}, tied)
        assert {*map(id, self.parameters())} == {*map(id, theirs.parameters())}, "a parameter outside of its modules"
        self._constants = {name: buffer.clone() for name, buffer in theirs.named_buffers()}
        self._documents_are_apart = False

    # --- as a module ------------------------------------------------------------------------------------------------

    def named_buffers(self, *args: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
        """Those of checkpoints; what the class computes for itself, such as tables of angles, is its own business."""
        passing = {
            buffer
            for module in self.modules()
            for name, buffer in module._buffers.items()
            if name in module._non_persistent_buffers_set
        }
        return ((name, buffer) for name, buffer in super().named_buffers(*args, **options) if buffer not in passing)

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Memory on a device; the buffers have the values with which the class was made."""
        super().to_empty(device=device, recurse=recurse)
        with torch.no_grad():
            for name, buffer in self.theirs.named_buffers():
                buffer.copy_(self._constants[name])
        return self

    def train(self, mode: bool = True) -> Self:
        self.theirs.train(mode)
        return super().train(mode)

    def initial_value(
        self, module: nn.Module, kind: str, shape: tuple[int, ...], generator: torch.Generator
    ) -> Tensor:
        """What the class draws for one module by itself.

        It goes module by module, so that no rank needs the whole; what a class changes of a module inside of another
        afterwards, such as GPT-2's smaller projections into the residual stream, is not done.
        """
        alone: Any = object.__new__(type(module))
        alone.__dict__.update(module.__dict__)
        alone._parameters = {
            name: None if parameter is None else nn.Parameter(torch.zeros(shape if name == kind else parameter.shape))
            for name, parameter in module._parameters.items()
        }
        alone._buffers = {name: self._constants_of(buffer) for name, buffer in module._buffers.items()}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(generator.initial_seed())
            self.theirs._init_weights(alone)
        found: Tensor = alone._parameters[kind].detach()
        return found

    def requests(self) -> dict[str, Request]:
        return {"cross_entropy": CrossEntropyRequest(self.dtype, self.vocab)}

    # --- as a language model ----------------------------------------------------------------------------------------

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, documents: CuSeqlens, cache: _Caches | None = None
    ) -> Tensor:
        """``[T, V]`` logits: a class may do more than multiply with its head."""
        if cache is not None:
            return cache(self._logits, tokens_T, positions_T, documents)
        if not self._documents_are_apart:
            self._require_documents_apart(tokens_T.device)
            self._documents_are_apart = True
        return self._logits(tokens_T, positions_T)

    def loss(
        self,
        hidden_TD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        """Cross-entropy of the logits that ``forward`` returns."""
        return self.cross_entropy(hidden_TD, labels_T, weights_T, label_smoothing=label_smoothing, z_loss=z_loss)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """What ``forward`` returns are logits."""
        return hidden_TD

    def make_cache(self, sequences: int, capacity: int, device: torch.device) -> _Caches:
        """One of theirs for each sequence: they go through the model one by one."""
        from transformers import DynamicCache

        return _Caches([DynamicCache(config=self.theirs.config) for _ in range(sequences)])

    def matmul_parameters(self) -> int:
        """All matrices but the embeddings; of stacked experts, as many as a token visits."""
        embeddings = [module for module in self.modules() if isinstance(module, nn.Embedding)]
        inputs = {id(module.weight) for module in embeddings} - {id(self._head())}
        return sum(self._visited(parameter) for parameter in self.parameters() if id(parameter) not in inputs)

    def recomputed_matmul_parameters(self) -> int:
        blocks = {id(p) for layers in self._lists() for p in layers.parameters()}
        all_of_them = sum(self._visited(parameter) for parameter in self.parameters() if id(parameter) in blocks)
        return all_of_them if self._recomputes else 0

    def attention_shapes(self) -> list[AttentionShape]:
        config = self.theirs.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        windows = [None] * config.num_hidden_layers
        if kinds := getattr(config, "layer_types", None):
            windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
        return [AttentionShape(config.num_attention_heads, head, window=window) for window in windows]

    def recomputed_attention_layers(self) -> int:
        return len(self.attention_shapes()) if self._recomputes else 0

    def recomputed_blocks(self) -> frozenset[int]:
        return frozenset(range(self.recomputed_attention_layers()))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _logits(self, tokens_T: Tensor, positions_T: Tensor, **options: Any) -> Tensor:
        options.setdefault("use_cache", False)
        found = self.theirs(input_ids=tokens_T[None], position_ids=positions_T[None], **options)
        logits_TV: Tensor = found.logits[0]
        return logits_TV.to(self.dtype)

    @torch.no_grad()
    def _require_documents_apart(self, device: torch.device) -> None:
        """Let a document change what another computes, if it can.

        Raises:
            UserError: it does.
        """
        training = self.training
        self.eval()
        first, second = [1, 2, 3, 4], [3, 2, 1]
        tokens = torch.tensor([token % self.vocab for token in (*first, *second)], device=device)
        whole = torch.arange(len(tokens), device=device)
        places = torch.cat([whole[: len(first)], whole[: len(second)]])
        alone = self._logits(tokens[len(first) :], places[len(first) :])
        packed, joined = (self._logits(tokens, positions)[len(first) :] for positions in (places, whole))
        self.train(training)
        apart, together = ((other - alone).abs().max() for other in (packed, joined))
        noise = 8 * torch.finfo(alone.dtype).eps * alone.abs().max()
        if apart > 0.1 * together and apart > noise:
            raise UserError(
                f"{type(self.theirs).__name__} does not keep packed documents apart: its logits for one depend on "
                "the one before it",
                "a class of transformers whose mask follows position_ids, with an attention that it knows masks for",
                "set hf.attn_implementation='sdpa', or write a model family in a plug-in (docs/plugin-guide.md)",
            )

    def _constants_of(self, buffer: Tensor | None) -> Tensor | None:
        return None if buffer is None else torch.zeros(buffer.shape, dtype=buffer.dtype)

    def _lists(self) -> list[nn.ModuleList]:
        return [child for child in self.children() if isinstance(child, nn.ModuleList)]

    def _head(self) -> Any:
        head = self.theirs.get_output_embeddings()
        return None if head is None else head.weight

    def _visited(self, parameter: Tensor) -> int:
        if parameter.dim() < 3:
            return parameter.numel() if parameter.dim() == 2 else 0
        config = self.theirs.config.get_text_config()
        top_k = getattr(config, "num_experts_per_tok", None) or parameter.shape[0]
        return parameter.numel() // parameter.shape[0] * min(top_k, parameter.shape[0])


class _Caches:
    """Keys and values of sequences that go through the model one by one.

    Attributes:
        lengths: tokens of each so far.
    """

    def __init__(self, caches: Sequence[Any]) -> None:
        self._caches = caches
        self.lengths = [0] * len(caches)

    def __call__(
        self, logits: Callable[..., Tensor], tokens_T: Tensor, positions_T: Tensor, documents: CuSeqlens
    ) -> Tensor:
        parts = []
        for row, (start, stop) in enumerate(zip(documents.host, documents.host[1:], strict=False)):
            options = dict(past_key_values=self._caches[row], use_cache=True)
            parts.append(logits(tokens_T[start:stop], positions_T[start:stop], **options))
            self.lengths[row] += stop - start
        return torch.cat(parts)


def build(settings: Mapping[str, Any], numerics: Numerics) -> ClassOfTransformers:
    """The model that ``hf`` names, with buffers on the host and parameters on the meta device."""
    with torch.device("cpu"), _parameters_on_meta():
        theirs = make_model(settings["hf"], dtype=numerics.dtype)
    return ClassOfTransformers(theirs, numerics.dtype, recompute=bool(settings.get("checkpoint")))


def weights(spec: ClassSpec) -> WeightMap:
    """Every tensor under its own name; a tied one once."""
    return WeightMap(tuple(same(ours, theirs) for ours, theirs in spec.names.items()), ignored=spec.tied)


def to_hugging_face(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The class's own config."""
    hf = settings["hf"]
    found: dict[str, Any] = read_config(hf).to_dict()
    if not found.get("architectures") and hf.get("mod_cls"):
        found["architectures"] = [hf["mod_cls"]]
    return found


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules that are made inside get parameters without memory, and buffers with their values."""

    def moved(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:
            return parameter
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)

    handle = register_module_parameter_registration_hook(moved)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Lists of blocks, and modules without such a list in them, by name."""
    for name, child in module.named_children():
        inner = any(isinstance(one, nn.ModuleList) for one in child.modules())
        if inner and not isinstance(child, nn.ModuleList):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _give_role(module: nn.Module) -> None:
    """What ``adam.no_decay`` goes by."""
    if isinstance(module, nn.Embedding):
        module.role = Role.EMBEDDING  # type: ignore[assignment]
    elif "Norm" in type(module).__name__:
        module.role = Role.NORM  # type: ignore[assignment]
