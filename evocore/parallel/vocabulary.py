"""Embedding and output head whose vocabulary is divided over the ranks of a group.

A rank holds the rows of its words. It looks up what it has, and of the loss it computes what depends on its own
logits; four numbers per token from each rank make the whole.

Shapes: T tokens of the whole group, t those of this rank (T in mtp), D width, V this rank's words, W ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.nn.head import Head
from evocore.nn.layers import Embedding
from evocore.ops.collectives import FINISHED, Handle
from evocore.ops.cross_entropy import IGNORE_INDEX, CrossEntropyShard, CrossEntropyShardRequest, TokenLoss
from evocore.ops.kernel import Request
from evocore.ops.softcap import capped, slope
from evocore.parallel.functions import copy, gather, gathered, join_columns, reduce_, scatter_sum, start_gather
from evocore.parallel.groups import Group
from evocore.parallel.tensor import MODES, start_input_sum

CHUNK = 2**24
"""Elements of a temporary of logits' size: enough rows for an efficient product, little beside the activations."""


class VocabularyParallelEmbedding(Embedding):
    """An embedding of this rank's words: ``weight [V, D]``.

    Attributes:
        start: the first of them.
        group: the ranks that share the vocabulary, set by ``connect``.
    """

    mode: str
    start: int
    group: Group

    @classmethod
    def of(cls, whole: Embedding, mode: str, parts: int, index: int) -> Self:
        """Part ``index`` of ``parts``, with a weight of its own that is not initialised, where the whole has its.

        Args:
            mode: ``mtp``, ``msp`` or ``fsp``, see ``evocore.parallel.tensor``.
        """
        vocab, width = whole.weight.shape
        with whole.weight.device:
            own = cls(_words(vocab, parts, mode), width, dtype=whole.weight.dtype, init_std=whole.init_std)
        own.mode, own.start = mode, index * own.weight.shape[0]
        return own

    def connect(self, group: Group) -> None:
        """Make it whole with the others' parts."""
        self.group = group

    def forward(self, tokens_T: Tensor) -> Tensor:
        """``[t, D]``: every rank is given all tokens, and returns its own.

        A token outside the whole vocabulary has zeros.
        """
        own_TD = _OwnRows.apply(tokens_T, self.weight, self.start)
        return reduce_(own_TD, self.group) if self.mode == "mtp" else scatter_sum(own_TD, self.group)


class VocabularyParallelHead(Head):
    """A head with the rows of this rank's words: ``weight [V, D]``; ``vocab`` is that of the whole.

    Attributes:
        start: the first of its words.
        group: the ranks that share the vocabulary, set by ``connect``.
    """

    mode: str
    start: int
    group: Group
    cross_entropy_shard: CrossEntropyShard

    @classmethod
    def of(cls, whole: Head, mode: str, parts: int, index: int) -> Self:
        """As ``VocabularyParallelEmbedding.of``."""
        words = _words(whole.vocab, parts, mode)
        options: dict[str, Any] = dict(
            dtype=whole.dtype, init_std=whole.init_std, normalised=whole.normalised, softcap=whole.softcap
        )
        with whole.weight.device:
            own = cls(whole.width, words, **options)
        own.mode, own.start, own.vocab = mode, index * words, whole.vocab
        return own

    def connect(self, group: Group) -> None:
        """Make it whole with the others' parts."""
        self.group = group

    def requests(self) -> dict[str, Request]:
        dtype = self.dtype if self.softcap is None else torch.promote_types(self.dtype, torch.float32)
        return {"cross_entropy_shard": CrossEntropyShardRequest(dtype, self.weight.shape[0])}

    def forward(self, hidden_tD: Tensor) -> Tensor:
        """Scores of all tokens and all words, on every rank."""
        hidden_TD = copy(hidden_tD, self.group) if self.mode == "mtp" else gather(hidden_tD, self.group)
        return join_columns(super().forward(hidden_TD), self.group)

    def loss(
        self,
        hidden_tD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> TokenLoss:
        """As the contract of ``linear_cross_entropy``; every rank is given all labels, and returns all losses.

        In training this rank's logits ``[T, V]`` are kept for backward, in the dtype of the hidden states: gradients
        cannot be computed before all ranks are heard, and to compute logits twice would be a fourth product.
        """
        rows_VD = self.rows(self.weight)
        grads = torch.is_grad_enabled()
        wants_grad = grads and (hidden_tD.requires_grad or rows_VD.requires_grad)
        terms = _Terms(
            self.mode, self.group, self.cross_entropy_shard, self.vocab, label_smoothing, z_loss, self.softcap
        )
        counted_T = labels_T != IGNORE_INDEX
        weights_T = counted_T.to(torch.float32) if weights_T is None else weights_T.where(counted_T, 0)
        loss = _Loss.apply(hidden_tD, rows_VD, labels_T - self.start, counted_T, weights_T, terms, wants_grad)
        return TokenLoss(*loss)


def _words(vocab: int, parts: int, mode: str) -> int:
    assert vocab % parts == 0 and mode in MODES, (vocab, parts, mode)  # the config was checked
    return vocab // parts


class _OwnRows(torch.autograd.Function):
    """Rows ``tokens_T - start`` of a weight, zeros for those that it does not have."""

    @staticmethod
    def forward(ctx: Any, tokens_T: Tensor, weight_VD: Tensor, start: int) -> Tensor:
        own_T = (tokens_T >= start) & (tokens_T < start + weight_VD.shape[0])
        ctx.save_for_backward(tokens_T, own_T)
        ctx.rows, ctx.start = weight_VD.shape[0], start
        return F.embedding((tokens_T - start).where(own_T, 0), weight_VD).masked_fill_(~own_T[:, None], 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[None, Tensor, None]:
        tokens_T, own_T = ctx.saved_tensors
        # The gradient of one more row, which is skipped: that of all tokens that are not this rank's.
        index_T = (tokens_T - ctx.start).where(own_T, ctx.rows)
        grad = torch.ops.aten.embedding_dense_backward(grad_TD, index_T, ctx.rows + 1, ctx.rows, False)
        return None, grad[: ctx.rows], None


@dataclass(frozen=True)
class _Terms:
    mode: str
    group: Group
    kernel: CrossEntropyShard
    vocab: int
    label_smoothing: float
    z_loss: float
    softcap: float | None


class _Loss(torch.autograd.Function):
    """Of labels counted from this rank's first word; ``weights_T`` are zero where a token is not counted."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_tD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        counted_T: Tensor,
        weights_T: Tensor,
        terms: _Terms,
        wants_grad: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        hidden_TD = hidden_tD if terms.mode == "mtp" else gathered(hidden_tD, terms.group)
        tokens, words = len(hidden_TD), len(weight_VD)
        rows = tokens if wants_grad else _rows(tokens, words)
        logits_RV = hidden_TD.new_empty(rows, words)
        own_4T = hidden_TD.new_empty(4, tokens, dtype=torch.promote_types(hidden_TD.dtype, torch.float32))
        for part in _parts(tokens, rows):
            hidden_CD = hidden_TD[part]
            logits_CV = torch.mm(hidden_CD, weight_VD.T, out=logits_RV[: len(hidden_CD)])
            _evaluate(logits_CV, labels_T[part], terms, own_4T[:, part])
        lse_T, loss_T, correct_T = _combine(own_4T, counted_T, terms)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(loss_T, correct_T)
        ctx.terms = terms
        if wants_grad:
            kept = hidden_tD if terms.mode == "fsp" else hidden_TD
            ctx.save_for_backward(kept, weight_VD, labels_T, lse_T, weights_T)
            ctx.logits = logits_RV  # not among the saved tensors: their gradient is written over them
        return (loss_T * weights_T).sum(), loss_T, correct_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * 7
        hidden_TD, weight_VD, labels_T, lse_T, weights_T = ctx.saved_tensors
        logits_TV, ctx.logits, terms = ctx.logits, None, ctx.terms
        if logits_TV is None:
            raise RuntimeError("the total of this loss can be differentiated once: backward uses up the logits")
        arriving: Handle = FINISHED
        summed: Handle = FINISHED
        if terms.mode == "fsp" and ctx.needs_input_grad[1]:
            hidden_TD, arriving = start_gather(hidden_TD, terms.group)
        scale_T = weights_T * grad_total
        for part in _parts(len(logits_TV), _rows(*logits_TV.shape)):
            capped_CV = logits_TV[part] if terms.softcap is None else capped(logits_TV[part], terms.softcap)
            grad_CV = terms.kernel.backward(
                capped_CV,
                labels_T[part],
                lse_T[part],
                scale_T[part],
                vocab=terms.vocab,
                label_smoothing=terms.label_smoothing,
                z_loss=terms.z_loss,
            )
            logits_TV[part] = grad_CV if terms.softcap is None else grad_CV.mul_(slope(capped_CV, terms.softcap))
        grad_tD = None
        if ctx.needs_input_grad[0]:
            grad_TD = logits_TV @ weight_VD  # lives until it was summed
            grad_tD, summed = start_input_sum(terms.mode, grad_TD, terms.group)
        arriving.wait()
        grad_VD = logits_TV.T @ hidden_TD if ctx.needs_input_grad[1] else None
        summed.wait()
        return (grad_tD, grad_VD, None, None, None, None, None)


def _evaluate(logits_CV: Tensor, labels_C: Tensor, terms: _Terms, own_4C: Tensor) -> None:
    """Write the ``ShardStatistics`` of some rows; capped logits are in float32, so of a few rows at a time."""
    if terms.softcap is None:
        torch.stack(terms.kernel.forward(logits_CV, labels_C), out=own_4C)
        return
    for part in _parts(len(logits_CV), _rows(*logits_CV.shape)):
        capped_CV = capped(logits_CV[part], terms.softcap)
        torch.stack(terms.kernel.forward(capped_CV, labels_C[part]), out=own_4C[:, part])


def _combine(own_4T: Tensor, counted_T: Tensor, terms: _Terms) -> tuple[Tensor, Tensor, Tensor]:
    """Log-sum-exp, loss and correctness of each token from every rank's ``ShardStatistics``."""
    all_W4T = gathered(own_4T, terms.group).unflatten(0, (terms.group.size, 4))
    lse_WT, label_WT, sum_WT, largest_WT = all_W4T.unbind(1)
    lse_T, label_T = lse_WT.logsumexp(0), label_WT.sum(0)
    loss_T = lse_T - label_T
    if terms.label_smoothing:
        smooth_T = lse_T - sum_WT.sum(0) / terms.vocab
        loss_T = (1 - terms.label_smoothing) * loss_T + terms.label_smoothing * smooth_T
    if terms.z_loss:
        loss_T = loss_T + terms.z_loss * lse_T.square()
    return lse_T, loss_T.where(counted_T, 0), counted_T & (label_T >= largest_WT.amax(0))


def _rows(tokens: int, words: int) -> int:
    return min(tokens, max(1, CHUNK // words))


def _parts(tokens: int, rows: int) -> Iterator[slice]:
    return (slice(start, start + rows) for start in range(0, tokens, max(1, rows)))
