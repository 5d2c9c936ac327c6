"""The output head: scores of the next token, and the loss without materialising them.

Shapes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evocore.nn.binding import UsesOps
from evocore.nn.layers import Linear
from evocore.nn.roles import Role
from evocore.ops.cross_entropy import LinearCrossEntropyRequest, TokenLoss
from evocore.ops.kernel import Request


class Head(Linear, UsesOps):
    """``weight [V, D]``, one row per word of the vocabulary.

    Args:
        normalised: the rows are scaled to length one in every forward pass (InternLM2's and Baichuan2's option).
    """

    linear_cross_entropy: Callable[..., TokenLoss]

    def __init__(
        self, width: int, vocab: int, *, dtype: torch.dtype, init_std: float, normalised: bool = False
    ) -> None:
        super().__init__(width, vocab, role=Role.HEAD, dtype=dtype, init_std=init_std)
        self.width, self.vocab, self.dtype, self.normalised = width, vocab, dtype, normalised

    def requests(self) -> dict[str, Request]:
        return {"linear_cross_entropy": LinearCrossEntropyRequest(self.dtype, self.width, self.vocab)}

    def rows(self, weight_VD: Tensor) -> Tensor:
        """The weight as it is multiplied with."""
        return F.normalize(weight_VD, dim=1) if self.normalised else weight_VD

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """``[T, V]`` in the dtype of the weight."""
        return F.linear(hidden_TD, self.rows(self.weight))

    def loss(
        self,
        hidden_TD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        """As the contract of ``linear_cross_entropy`` with this head's rows."""
        return self.linear_cross_entropy(
            hidden_TD, self.rows(self.weight), labels_T, weights_T, label_smoothing=label_smoothing, z_loss=z_loss
        )
