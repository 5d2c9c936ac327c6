"""Contracts of ``cross_entropy`` and ``linear_cross_entropy``: the loss of next-token prediction.

Shapes: T tokens, D hidden, V vocabulary.

Both return a weighted sum, not a mean: the caller knows how many tokens the whole global batch holds, a kernel sees
one micro-batch of one rank. Because the weights are given with the call, a kernel can compute its gradients while the
logits are at hand and need not keep or recompute them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from evocore.ops.kernel import Request

IGNORE_INDEX = -100
"""Label of a token that has no loss."""


class TokenLoss(NamedTuple):
    """What a loss kernel returns.

    Attributes:
        total: float32 scalar, the sum of ``weights_T * loss_T``; the only differentiable one.
        loss_T: float32 loss of each token, detached; 0 where the label is ignored.
        correct_T: bool, whether the label's logit is the largest of its row; False where the label is ignored.
    """

    total: Tensor
    loss_T: Tensor
    correct_T: Tensor


class CrossEntropy(Protocol):
    """``loss = (1 - s) * (lse - x[label]) + s * (lse - mean(x)) + z * lse**2`` with ``lse = logsumexp(x)``.

    s is label smoothing (Szegedy et al., 2016, section 7), z the weight of the z-loss (Chowdhery et al., 2022,
    section 5).

    Args:
        logits_TV: any strides; not modified.
        labels_T: int64 in ``[0, V)`` or ``ignore_index``.
        weights_T: float32 weight of each token in ``total``, a constant; None for 1.
        ignore_index, label_smoothing, z_loss: as above.

    Returns:
        A ``TokenLoss`` computed in float32. Differentiable in ``logits_TV``.
    """

    def __call__(
        self,
        logits_TV: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss: ...


class ShardStatistics(NamedTuple):
    """What one shard of the vocabulary contributes to the loss of a row; all ``[T]`` float32 (float64 for float64).

    Attributes:
        lse_T: logarithm of the sum of the exponentials of this shard's logits.
        label_T: the label's logit, 0 where the label lies in another shard.
        sum_T: sum of this shard's logits, for label smoothing.
        largest_T: the largest of this shard's logits.
    """

    lse_T: Tensor
    label_T: Tensor
    sum_T: Tensor
    largest_T: Tensor


class ShardForward(Protocol):
    """One pass over a shard's logits.

    Args:
        logits_TV: this shard's V of the vocabulary, any strides; not modified.
        labels_T: int64 counted from this shard's first word; whatever lies outside ``[0, V)`` is in another shard or
            ignored.
    """

    def __call__(self, logits_TV: Tensor, labels_T: Tensor) -> ShardStatistics: ...


class ShardBackward(Protocol):
    """Gradient of ``sum(scale_T * loss_T)`` with respect to a shard's logits.

    ``scale * ((1 + 2 z lse) * exp(x - lse) - (1 - s) * [v is the label] - s / vocab)``, with s and z as in
    ``CrossEntropy``.

    Args:
        logits_TV, labels_T: as in ``ShardForward``.
        lse_T: over the whole vocabulary: ``logsumexp`` of the shards' ``lse_T``.
        scale_T: float32 weight of each token times the incoming gradient; 0 where the label is ignored.
        vocab: size of the whole vocabulary.
        label_smoothing, z_loss: as in ``CrossEntropy``.

    Returns:
        ``[T, V]`` in the dtype of ``logits_TV``, contiguous.
    """

    def __call__(
        self,
        logits_TV: Tensor,
        labels_T: Tensor,
        lse_T: Tensor,
        scale_T: Tensor,
        *,
        vocab: int,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor: ...


class CrossEntropyShard(NamedTuple):
    """Contract of ``cross_entropy_shard``: the two halves of a loss whose vocabulary is split over ranks.

    Between them the ranks exchange ``ShardStatistics``, four numbers per token.
    """

    forward: ShardForward
    backward: ShardBackward


class LinearCrossEntropy(Protocol):
    """``cross_entropy(softcap(hidden @ weight.T))`` in pieces: the ``[T, V]`` logits never exist as a whole.

    Args:
        hidden_TD: any strides; not modified.
        weight_VD: rows of the output head, in the dtype of ``hidden_TD``.
        labels_T, weights_T, ignore_index, label_smoothing, z_loss: as in ``cross_entropy``.
        softcap: logits x become ``softcap * tanh(x / softcap)`` (Gemma 2), which is not rounded before the softmax;
            None for none.

    Returns:
        A ``TokenLoss``; logits are rounded to the dtype of ``hidden_TD`` before the softmax at most. Differentiable
        in ``hidden_TD`` and ``weight_VD``; ``total`` can be differentiated once. Without gradients
        (``torch.no_grad``, or no input that requires them) none are computed.
    """

    def __call__(
        self,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
    ) -> TokenLoss: ...


@dataclass(frozen=True)
class CrossEntropyRequest(Request):
    """``vocab`` is V."""

    vocab: int

    @property
    def op(self) -> str:
        return "cross_entropy"


@dataclass(frozen=True)
class CrossEntropyShardRequest(Request):
    """``vocab`` is V, the size of one shard."""

    vocab: int

    @property
    def op(self) -> str:
        return "cross_entropy_shard"


@dataclass(frozen=True)
class LinearCrossEntropyRequest(Request):
    """``width`` is D, ``vocab`` is V; calls have the ``softcap`` of the request."""

    width: int
    vocab: int
    softcap: float | None = None

    @property
    def op(self) -> str:
        return "linear_cross_entropy"
