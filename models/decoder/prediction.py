"""Multi-token prediction (DeepSeek-V3, section 2.2): blocks behind the last one that look further ahead, in training.

Predictor k joins what the one before it made of token i with the embedding of token i + k, runs one more block, and
from the result the model's own head predicts token i + k + 1. The first predictor gets the final hidden states of the
model. Generation does without them.

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evocore.models.decoder.block import Angles, Block, plain_norm, residual_norm
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.layers import Linear
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.ops.attention import CuSeqlens
from evocore.ops.kernel import Request


class Join(Projecting):
    """``projection [embedding, hidden]``: two vectors of a token to one."""

    def __init__(self, spec: DecoderSpec) -> None:
        super().__init__()
        self.projection = Linear(
            2 * spec.hidden, spec.hidden, role=Role.REPLICATED, dtype=spec.numerics.dtype, init_std=spec.init.qkv
        )

    def requests(self) -> dict[str, Request]:
        return {}

    def forward(self, embedded_TD: Tensor, hidden_TD: Tensor) -> Tensor:
        return self.fan_out(torch.cat([embedded_TD, hidden_TD], dim=1), [self.projection])[0]


class Predictor(nn.Module):
    """One more block, with what comes before and after it.

    Args:
        layer: its number, counted on from those of the model's blocks.
    """

    def __init__(self, spec: DecoderSpec, layer: int) -> None:
        super().__init__()
        self.embedding_norm, self.hidden_norm = plain_norm(spec), plain_norm(spec)
        self.join = Join(spec)
        self.block = Block(spec, layer)
        self.norm = residual_norm(spec)

    def forward(self, hidden_TD: Tensor, embedded_TD: Tensor, angles: Angles, documents: CuSeqlens) -> tuple[Tensor]:
        """Normalised hidden states, ready for the head and for the next predictor."""
        x_TD = self.join(self.embedding_norm(embedded_TD), self.hidden_norm(hidden_TD))
        normed_TD: Tensor = self.norm(*self.block(x_TD, None, angles, documents))[0]
        return (normed_TD,)
