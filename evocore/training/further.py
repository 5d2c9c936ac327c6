"""The loss of predictions beyond the next token, in training: multi-token prediction.

It is ``coefficient / K * sum of the K predictions' losses`` (DeepSeek-V3, equations 24 and 25), each over as many
targets as the loss of the next token has: the last tokens of a document lack some.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from evocore.data.batch import MicroBatch
from evocore.ops.attention import CuSeqlens
from evocore.ops.cross_entropy import IGNORE_INDEX


class Further:
    """Adds up the loss over a step.

    Args:
        count: K.
        coefficient: of their mean loss in what is differentiated.
    """

    def __init__(self, count: int, coefficient: float) -> None:
        self._count, self._coefficient = count, coefficient
        self._sum: Tensor | None = None

    def loss(
        self,
        model: nn.Module,
        batch: MicroBatch,
        own: Callable[[Tensor], Tensor],
        hidden_TD: Tensor,
        positions_T: Tensor,
        documents: CuSeqlens,
        weights_T: Tensor,
        **options: float,
    ) -> Tensor:
        """Of one micro-batch, weighted.

        Args:
            model: ``evocore.nn.family.PredictsFurther``.
            own: what this rank has of something that the micro-batch has for each token.
            others: as of ``further_losses``.
        """
        places = range(1, self._count + 1)
        losses = model.further_losses(  # type: ignore[operator]
            hidden_TD,
            [own(ahead(batch.tokens_T, batch.cu_seqlens, k, 0)) for k in places],
            positions_T,
            documents,
            [own(ahead(batch.labels_T, batch.cu_seqlens, k, IGNORE_INDEX)) for k in places],
            weights_T,
            **options,
        )
        mean: Tensor = torch.stack([loss.total for loss in losses]).mean()
        told = torch.stack([(loss.loss_T * weights_T).sum() for loss in losses]).mean().detach()
        self._sum = told if self._sum is None else self._sum + told
        return self._coefficient * mean

    def take(self, device: torch.device) -> Tensor:
        """``[1]`` the mean of the K losses that this rank has computed in a step, without the coefficient."""
        found, self._sum = self._sum, None
        return torch.zeros(1, device=device) if found is None else found.float().view(1)


def ahead(x_T: Tensor, ends: tuple[int, ...] | list[int], places: int, fill: int) -> Tensor:
    """What each token has so many places further in its document, ``fill`` if there is none.

    Args:
        ends: cumulative lengths of the documents, from 0.
    """
    found_T = x_T.roll(-places)
    for start, end in pairwise(ends):
        found_T[max(start, end - places) : end] = fill
    return found_T
