"""A model family as a stranger's package brings it: no decoder of ours, gated token mixers of its own on our layers.

A token sees the one before it in its document, and the blocks do the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from models_hf_runs import told_by
from torch import Tensor, nn

from evocore import hookimpl
from evocore.nn.blocks import run_block
from evocore.nn.family import AttentionShape, ModelFamily, Numerics
from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear, RMSNorm
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import TokenLoss
from evocore.ops.glu import SwiGLURequest
from evocore.ops.kernel import Request
from evocore.plugins.manager import PluginRegistry, load_plugins

SIZES: dict[str, dict[str, Any]] = {
    "pairs-tiny": dict(num_layers=2, hidden_size=32, num_attention_heads=2, vocab_size=64, mlp_ratio=2),
}


class Plugin:
    """What the package's entry point would name."""

    @hookimpl
    def evocore_models(self) -> list[ModelFamily]:
        return [ModelFamily("PAIRS", f"{__name__}:build", description="a stranger's: pairs of tokens, no attention")]


class Mixer(Projecting):
    """``w2(silu(w1 x) * w3 x)``; that its outputs are divided is all it says to be trained in tensor parallel."""

    divided: ClassVar[tuple[str, ...]] = ("width",)
    gated: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, hidden: int, width: int, numerics: Numerics) -> None:
        super().__init__()
        self.width, self.dtype = width, numerics.dtype
        options: dict[str, Any] = dict(dtype=numerics.dtype, init_std=0.1)
        self.norm = RMSNorm(
            hidden, eps=1e-5, dtype=numerics.dtype, weight_dtype=numerics.norm_dtype, residual_dtype=numerics.dtype
        )
        self.w1, self.w3 = (Linear(hidden, width, role=role, **options) for role in (Role.GATE, Role.UP))
        self.w2 = Linear(width, hidden, role=Role.DOWN, **options)

    def requests(self) -> dict[str, Request]:
        return {"gated": SwiGLURequest(self.dtype, self.width)}

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        normed_TD, residual_TD = self.norm(x_TD, residual_TD)
        gate_TF, up_TF = self.fan_out(normed_TD, [self.w1, self.w3])
        return self.fan_in(self.gated(gate_TF, up_TF), self.w2), residual_TD


class Pairs(nn.Module):
    """See ``evocore.nn.family.LanguageModel``."""

    def __init__(self, settings: Mapping[str, Any], numerics: Numerics) -> None:
        super().__init__()
        hidden, vocab = settings["hidden_size"], settings["vocab_size"]
        self.run_block = run_block
        self.here = Embedding(vocab, hidden, dtype=numerics.dtype, init_std=0.5)
        self.before = Embedding(vocab, hidden, dtype=numerics.dtype, init_std=0.5)
        width = int(hidden * settings["mlp_ratio"])
        self.mixers = nn.ModuleList(Mixer(hidden, width, numerics) for _ in range(settings["num_layers"]))
        self.norm = RMSNorm(
            hidden, eps=1e-5, dtype=numerics.dtype, weight_dtype=numerics.norm_dtype, residual_dtype=numerics.dtype
        )
        self.head = Head(hidden, vocab, dtype=numerics.dtype, init_std=0.1)

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, documents: CuSeqlens, cache: Any = None, **part: Any
    ) -> Tensor:
        first_T = (positions_T == 0)[:, None]
        before_TD = self.before(tokens_T.roll(1)).masked_fill(first_T, 0.0)
        x_TD, residual_TD = self.here(tokens_T) + before_TD, None
        for layer, mixer in enumerate(self.mixers):
            x_TD, residual_TD = self.run_block(mixer, (x_TD, residual_TD), (), layer=layer, recomputed=False)
        normed_TD: Tensor = self.norm(x_TD, residual_TD)[0]
        return normed_TD

    def loss(
        self, hidden_TD: Tensor, labels_T: Tensor, weights_T: Tensor | None = None, **options: float
    ) -> TokenLoss:
        return self.head.loss(hidden_TD, labels_T, weights_T, **options)

    def matmul_parameters(self) -> int:
        return sum(layer.weight.numel() for layer in self.modules() if isinstance(layer, Linear))

    def recomputed_matmul_parameters(self) -> int:
        return 0

    def attention_shapes(self) -> list[AttentionShape]:
        return []

    def recomputed_attention_layers(self) -> int:
        return 0

    def recomputed_blocks(self) -> frozenset[int]:
        return frozenset()


def build(settings: Mapping[str, Any], numerics: Numerics) -> Pairs:
    return Pairs(settings, numerics)


def registry() -> PluginRegistry:
    """All plug-ins and the stranger's."""
    found = load_plugins()
    found.register(Plugin(), "pairs")
    return found


def figures(config: dict[str, Any]) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step; called on every rank, or alone."""
    return told_by(config, registry())[0]
