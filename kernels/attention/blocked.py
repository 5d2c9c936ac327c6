"""``attention`` and ``attention_block`` by matrix products over blocks of queries, with their backward written out.

A block of queries meets only the keys that some of its queries see: none of other documents, none after the diagonal,
none before the window. The query heads that share a key-value head are rows of one product. Backward computes the
probabilities again, so that ``attention`` keeps only q, k and v.

In this module a document's tensors are ``[B, rows, H]``: B is documents times key-value heads, and a row is a token
or, for queries, one of the ``G = N / K`` heads of a token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.attention.blocks import Block, Terms, blocks, parts, unseeing
from evocore.kernels.attention.documents import Run, runs
from evocore.ops.attention import AttentionBlock, CuSeqlens


def attention(
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    *,
    q_documents: CuSeqlens,
    k_documents: CuSeqlens,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> Tensor:
    terms = _terms(q_TNH, causal, window, softcap, scale)
    plan = parts(runs(q_documents, k_documents), q_TNH.shape[1], terms)
    mixed_TNH: Tensor = _Attention.apply(q_TNH, k_SKH, v_SKH, plan, terms)
    return mixed_TNH


def attention_forward(
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    *,
    q_documents: CuSeqlens,
    k_documents: CuSeqlens,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``AttentionForward``."""
    terms = _terms(q_TNH, causal, window, softcap, scale)
    plan = parts(runs(q_documents, k_documents), q_TNH.shape[1], terms)
    lse_TN = q_TNH.new_empty(q_TNH.shape[:2], dtype=torch.promote_types(q_TNH.dtype, torch.float32))
    return _forward(q_TNH, k_SKH, v_SKH, plan, terms, lse_TN), lse_TN


def attention_backward(
    grad_TNH: Tensor,
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    out_TNH: Tensor,
    lse_TN: Tensor,
    *,
    q_documents: CuSeqlens,
    k_documents: CuSeqlens,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``AttentionBackward``."""
    terms = _terms(q_TNH, causal, window, softcap, scale)
    plan = parts(runs(q_documents, k_documents), q_TNH.shape[1], terms)
    delta_TN = (grad_TNH.to(lse_TN.dtype) * out_TNH.to(lse_TN.dtype)).sum(-1)
    # A query that sees no key at all is hidden from all blocks: any number will do, but -inf - -inf is none.
    whole = Whole(lse_TN.masked_fill(lse_TN == -math.inf, 0.0), delta_TN)
    return _backward(grad_TNH, q_TNH, k_SKH, v_SKH, plan, terms, whole)


attention_block = AttentionBlock(attention_forward, attention_backward)


class Whole(NamedTuple):
    """What a block of keys must know of the others: ``[T, N]`` or, cut out and gathered, ``[B, rows, 1]``.

    Attributes:
        lse: logarithm of the sum of the exponentials of all scores of a query; finite.
        delta: sum over H of the output times its gradient, which is that of the probabilities times theirs.
    """

    lse: Tensor
    delta: Tensor


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: list[Run], terms: Terms) -> Tensor:
        ctx.save_for_backward(q_TNH, k_SKH, v_SKH)
        ctx.plan, ctx.terms = plan, terms
        return _forward(q_TNH, k_SKH, v_SKH, plan, terms, None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TNH: Tensor) -> tuple[Tensor | None, ...]:
        q_TNH, k_SKH, v_SKH = ctx.saved_tensors
        return (*_backward(grad_TNH, q_TNH, k_SKH, v_SKH, ctx.plan, ctx.terms, None), None, None)


def _terms(q_TNH: Tensor, causal: bool, window: int | None, softcap: float | None, scale: float | None) -> Terms:
    scale = 1 / math.sqrt(q_TNH.shape[-1]) if scale is None else scale
    return Terms(causal, window if causal else None, softcap, scale)


def _forward(
    q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, plan: list[Run], terms: Terms, lse_TN: Tensor | None
) -> Tensor:
    """The output; its log-sum-exp is written to ``lse_TN`` if it is given."""
    out_TNH = q_TNH.new_empty(q_TNH.shape)
    group = q_TNH.shape[1] // k_SKH.shape[1]
    for run, tokens, keys in _slices(plan):
        q, k, v = _gather(q_TNH[tokens], run, group), _gather(k_SKH[keys], run), _gather(v_SKH[keys], run)
        out, work = _empty(q, run, terms), _Workspace(q)
        lse = None if lse_TN is None else lse_TN.new_full((*q.shape[:2], 1), -math.inf)
        for block in blocks(run, len(q), group, terms, work.compute, q.device):
            work.softmax(q, k, block, terms, None if lse is None else lse[:, block.rows])
            torch.bmm(work.probs.to(q.dtype), v[:, block.keys], out=out[:, block.rows])
        _scatter(out, out_TNH[tokens], run, group)
        if lse_TN is not None and lse is not None:
            _scatter(lse, lse_TN[tokens, :, None], run, group)
    return out_TNH


def _backward(
    grad_TNH: Tensor,
    q_TNH: Tensor,
    k_SKH: Tensor,
    v_SKH: Tensor,
    plan: list[Run],
    terms: Terms,
    whole: Whole | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v; if ``whole`` is None, the keys at hand are all there are."""
    group = q_TNH.shape[1] // k_SKH.shape[1]
    grads = (q_TNH.new_empty(q_TNH.shape), k_SKH.new_empty(k_SKH.shape), v_SKH.new_empty(v_SKH.shape))
    for run, tokens, keys in _slices(plan):
        q, k, v = _gather(q_TNH[tokens], run, group), _gather(k_SKH[keys], run), _gather(v_SKH[keys], run)
        grad = _gather(grad_TNH[tokens], run, group)
        rows = whole and Whole(*(_gather(x[tokens][..., None], run, group) for x in whole))
        grad_q, work = _empty(q, run, terms), _Workspace(q)
        grad_k, grad_v = (torch.zeros(k.shape, dtype=work.compute, device=k.device) for _ in range(2))
        for block in blocks(run, len(q), group, terms, work.compute, q.device):
            here = rows and Whole(*(x[:, block.rows] for x in rows))
            if here is None:
                work.softmax(q, k, block, terms, None)
            else:
                work.share_of_softmax(q, k, block, terms, here)
            _accumulate(grad_v[:, block.keys], work.probs.to(q.dtype), grad[:, block.rows], 1)
            slope = work.slope(grad[:, block.rows], v[:, block.keys], here).to(q.dtype)
            torch.baddbmm(
                grad_q[:, block.rows], slope, k[:, block.keys], beta=0, alpha=terms.scale, out=grad_q[:, block.rows]
            )
            _accumulate(grad_k[:, block.keys], slope, q[:, block.rows], terms.scale)
        _scatter(grad_q, grads[0][tokens], run, group)
        _scatter(grad_k, grads[1][keys], run)
        _scatter(grad_v, grads[2][keys], run)
    return grads


class _Workspace:
    """Scores and what follows from them, for one block at a time.

    Attributes:
        compute: dtype of the softmax.
        probs: probabilities of the last block, ``[B, rows, keys]``.
    """

    def __init__(self, q: Tensor) -> None:
        self.compute = torch.promote_types(q.dtype, torch.float32)
        self.probs = q.new_empty(0)
        self._flat = [q.new_empty(0), q.new_empty(0, dtype=self.compute), q.new_empty(0, dtype=self.compute)]
        self._softcap_slope: Tensor | None = None

    def softmax(self, q: Tensor, k: Tensor, block: Block, terms: Terms, lse: Tensor | None) -> None:
        """Set ``probs`` and, if it is given, ``lse``, ``[B, rows, 1]``, as if the block had all keys there are."""
        scores = self._scores(q, k, block, terms)
        torch.softmax(scores, -1, out=self.probs)
        if lse is not None:
            # The largest probability is exp(largest score - lse): two maxima cost less than exponentials again.
            torch.sub(scores.amax(-1, True), self.probs.amax(-1, True).log_(), out=lse)

    def share_of_softmax(self, q: Tensor, k: Tensor, block: Block, terms: Terms, whole: Whole) -> None:
        """Set ``probs`` to this block's share of those of all keys."""
        torch.sub(self._scores(q, k, block, terms), whole.lse, out=self.probs).exp_()

    def slope(self, grad: Tensor, v: Tensor, whole: Whole | None) -> Tensor:
        """Gradient of the scores, before scaling, of the block whose ``probs`` are at hand."""
        raw = torch.bmm(grad, v.mT, out=self._view(0, self.probs.shape)).to(self.compute)
        out = self._view(2, self.probs.shape)
        if whole is None:
            torch.ops.aten._softmax_backward_data.out(raw, self.probs, -1, self.compute, grad_input=out)
        else:
            torch.sub(raw, whole.delta, out=out).mul_(self.probs)
        return out if self._softcap_slope is None else out.mul_(self._softcap_slope)

    def _scores(self, q: Tensor, k: Tensor, block: Block, terms: Terms) -> Tensor:
        q, k = q[:, block.rows], k[:, block.keys]
        shape = (q.shape[0], q.shape[1], k.shape[1])
        scores, self.probs = self._view(0, shape), self._view(1, shape)
        factor = terms.scale if terms.softcap is None else terms.scale / terms.softcap
        torch.baddbmm(scores, q, k.mT, beta=0, alpha=factor, out=scores)
        scores = scores.to(self.compute)
        if terms.softcap is not None:
            scores.tanh_()
            self._softcap_slope = 1 - scores.square()
            scores.mul_(terms.softcap)
        if block.mask is not None:
            scores[..., -block.mask.shape[1] :].add_(block.mask)
        return scores

    def _view(self, index: int, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        if self._flat[index].numel() < size:
            self._flat[index] = self._flat[index].new_empty(size)
        return self._flat[index][:size].view(shape)


def _empty(q: Tensor, run: Run, terms: Terms) -> Tensor:
    """For what the blocks fill in; zeros where a query that sees no key is in none of them."""
    return torch.zeros_like(q) if unseeing(run, terms) else torch.empty_like(q)


def _accumulate(total: Tensor, rows_by_keys: Tensor, rows: Tensor, factor: float) -> None:
    """``total += factor * rows_by_keys.mT @ rows``, in the precision of ``total``."""
    if total.dtype == rows.dtype:
        total.baddbmm_(rows_by_keys.mT, rows, alpha=factor)
    else:
        total.add_(rows_by_keys.mT @ rows, alpha=factor)


def _slices(plan: list[Run]) -> Iterator[tuple[Run, slice, slice]]:
    """Each run with its query tokens and its keys."""
    token = key = 0
    for run in plan:
        tokens, keys = slice(token, token + run.documents * run.queries), slice(key, key + run.documents * run.keys)
        token, key = tokens.stop, keys.stop
        yield run, tokens, keys


def _gather(x: Tensor, run: Run, group: int = 1) -> Tensor:
    """``[documents * tokens, heads, H]`` as ``[documents * kv heads, tokens * group, H]``."""
    tokens, heads, width = len(x) // run.documents, x.shape[1] // group, x.shape[2]
    x = x.reshape(run.documents, tokens, heads, group, width).transpose(1, 2)
    return x.reshape(run.documents * heads, tokens * group, width)


def _scatter(x: Tensor, target: Tensor, run: Run, group: int = 1) -> None:
    """Write ``x`` back to where ``_gather`` found it."""
    tokens, heads, width = len(target) // run.documents, target.shape[1] // group, target.shape[2]
    x = x.view(run.documents, heads, tokens, group, width).transpose(1, 2)
    target.view(run.documents, tokens, heads, group, width).copy_(x)
