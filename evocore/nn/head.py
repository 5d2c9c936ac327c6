"""The output head: scores of the next token, and the loss without materialising them.

Shapes: T tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from evocore.nn.binding import UsesOps
from evocore.nn.layers import Linear
from evocore.nn.roles import Role
from evocore.ops.cross_entropy import LinearCrossEntropyRequest, TokenLoss
from evocore.ops.kernel import Request
from evocore.ops.softcap import capped


class Head(Linear, UsesOps):
    """``weight [V, D]``, one row per word of the vocabulary.

    Args:
        normalised: the rows are scaled to length one in every forward pass (InternLM2's and Baichuan2's option).
        softcap: of the scores (Gemma 2); None for none.
    """

    linear_cross_entropy: Callable[..., TokenLoss]

    def __init__(
        self,
        width: int,
        vocab: int,
        *,
        dtype: torch.dtype,
        init_std: float,
        normalised: bool = False,
        softcap: float | None = None,
    ) -> None:
        super().__init__(width, vocab, role=Role.HEAD, dtype=dtype, init_std=init_std)
        self.width, self.vocab, self.dtype = width, vocab, dtype
        self.normalised, self.softcap = normalised, softcap

    def requests(self) -> dict[str, Request]:
        return {"linear_cross_entropy": LinearCrossEntropyRequest(self.dtype, self.width, self.vocab, self.softcap)}

    def rows(self, weight_VD: Tensor) -> Tensor:
        """The weight as it is multiplied with."""
        return F.normalize(weight_VD, dim=1) if self.normalised else weight_VD

    def scores(self, hidden_TD: Tensor, weight_VD: Tensor) -> Tensor:
        """``[T, V]`` in the dtype of the weight, for some of its rows or all of them."""
        scores_TV = F.linear(hidden_TD, self.rows(weight_VD))
        return scores_TV if self.softcap is None else capped(scores_TV, self.softcap).to(scores_TV.dtype)

    def token_loss(
        self, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, weights_T: Tensor | None, **options: Any
    ) -> TokenLoss:
        """What ``loss`` is with the whole of the weight."""
        if self.softcap is not None:
            options["softcap"] = self.softcap
        return self.linear_cross_entropy(hidden_TD, self.rows(weight_VD), labels_T, weights_T, **options)

    def forward(self, hidden_TD: Tensor) -> Tensor:
        """``[T, V]`` in the dtype of the weight."""
        return self.scores(hidden_TD, self.weight)

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
        return self.token_loss(
            hidden_TD, self.weight, labels_T, weights_T, label_smoothing=label_smoothing, z_loss=z_loss
        )
