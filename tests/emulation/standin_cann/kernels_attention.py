"""aclnn kernels of fused attention, in float32, one document after the other.

The backward takes the probabilities from the statistics that it is given, as the operator does, not from a forward of
its own: a caller that hands it wrong statistics gets wrong gradients here too.

A row of scores in which everything is masked gives an output of 0 and the smallest float as its maximum: the chip
masks by that number, not by minus infinity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from standin_cann.attention_options import (
    ALL,
    BAND,
    LEFT_UP_CAUSAL,
    MOST_DOCUMENTS,
    RIGHT_DOWN_CAUSAL,
    Options,
    check,
    key_heads_of,
)
from standin_cann.kernels_basic import kept_elements
from standin_cann.opapi import require
from torch import Tensor

MASKED = torch.finfo(torch.float32).min
LANES = 8
"""Copies of each statistic."""


@dataclass
class Document:
    """One sequence: views ``[N, S, D]`` of the tensors, by name, and where its statistics stand among all."""

    tensors: dict[str, Tensor]
    q_rows: slice
    index: int


# --- documents ------------------------------------------------------------------------------------------------------


def _dense(x: Tensor, layout: str, heads: int) -> Tensor:
    """``[B, N, S, D]``, a view."""
    if layout in ("BSH", "SBH"):
        x = x.unflatten(-1, (heads, -1))
    return x.permute({"BSH": (0, 2, 1, 3), "SBH": (1, 2, 0, 3), "BSND": (0, 2, 1, 3), "BNSD": (0, 1, 2, 3)}[layout])


def _ends(lengths: list[int], tokens: int, name: str) -> list[int]:
    """Ends of the documents: cumulative, without a leading 0; zeros behind them mean nothing."""
    ends = list(lengths)
    while len(ends) > 1 and ends[-1] == 0:
        ends.pop()
    require(len(ends) <= MOST_DOCUMENTS, f"up to {MOST_DOCUMENTS} documents, not {len(ends)}")
    require(all(a <= b for a, b in zip([0, *ends], ends, strict=False)), f"{name} grows: {ends[:16]}")
    require(ends[-1] == tokens, f"{name} ends at the last of the {tokens} tokens, not at {ends[-1]}")
    return ends


def _documents(
    by_query: dict[str, Tensor],
    by_key: dict[str, Tensor],
    options: Options,
    lengths: tuple[list[int], list[int]] | None,
) -> Iterator[Document]:
    """Every document, with views of the tensors along its queries and along its keys."""
    q, k = next(iter(by_query.values())), next(iter(by_key.values()))
    if lengths is None:
        key_heads = key_heads_of(k, options, q)
        views = {name: _dense(x, options.layout, options.heads) for name, x in by_query.items()}
        views |= {name: _dense(x, options.layout, key_heads) for name, x in by_key.items()}
        for index in range(views["q"].shape[0]):
            yield Document({name: view[index] for name, view in views.items()}, slice(0), index)
        return
    q_ends = _ends(lengths[0], q.shape[0], "actual_seq_qlen")
    k_ends = _ends(lengths[1], k.shape[0], "actual_seq_kvlen")
    require(
        len(q_ends) == len(k_ends), f"as many documents of queries as of keys, not {len(q_ends)} and {len(k_ends)}"
    )
    edges = zip([0, *q_ends], q_ends, [0, *k_ends], k_ends, strict=False)
    for index, (q_start, q_end, k_start, k_end) in enumerate(edges):
        tensors = {name: x[q_start:q_end].transpose(0, 1) for name, x in by_query.items()}
        tensors |= {name: x[k_start:k_end].transpose(0, 1) for name, x in by_key.items()}
        yield Document(tensors, slice(q_start, q_end), index)


def _statistics_view(statistics: Tensor, document: Document, options: Options, *, like_input: bool) -> Tensor:
    """``[N, S, LANES]`` of one document.

    Packed documents have theirs in one block each, head after head, unless it was asked for the layout of the input.
    """
    if options.layout != "TND":
        return statistics[document.index]
    rows = statistics[document.q_rows]
    if like_input:
        return rows.transpose(0, 1)
    return rows.reshape(-1).view(options.heads, -1, LANES) if rows.numel() else rows.transpose(0, 1)


# --- arithmetic -----------------------------------------------------------------------------------------------------


def _hidden(document: Document, options: Options) -> Tensor | None:
    """``[Sq, Sk]`` or with leading sizes: where a query must not see a key."""
    if options.mask is None:
        return None
    queries, keys = document.tensors["q"].shape[1], document.tensors["k"].shape[1]
    i, j = torch.arange(queries)[:, None], torch.arange(keys)[None]
    shift = keys - queries
    if options.sparse_mode == LEFT_UP_CAUSAL:
        return j > i
    if options.sparse_mode == RIGHT_DOWN_CAUSAL:
        return j > i + shift
    if options.sparse_mode == BAND:
        return (j > i + shift + options.after) | (j < i + shift - options.before)
    given = options.mask.bool()
    if given.dim() == 4:
        given = given[document.index if given.shape[0] > 1 else 0]
    large = given.shape[-2] >= queries and given.shape[-1] >= keys
    require(
        large and (options.layout == "TND" or given.shape[-2:] == (queries, keys)), f"unsupported mask {given.shape}"
    )
    given = given[..., :queries, :keys]
    return given if options.sparse_mode == ALL else given | (j > i + options.after) | (j < i - options.before)


def _scores(document: Document, options: Options) -> tuple[Tensor, Tensor | None]:
    """Scaled scores ``[Nq, Sq, Sk]`` with the smallest float where masked, and where that is all of a row."""
    q, k = document.tensors["q"].float(), _for_queries(document.tensors["k"], options)
    scores = q @ k.mT * options.scale
    if options.pse is not None:
        require(options.pse.dim() == 4, f"the stand-in takes pse of four dimensions, not {options.pse.shape}")
        scores = scores + options.pse[document.index if options.pse.shape[0] > 1 else 0].float()
    hidden = _hidden(document, options)
    if hidden is None:
        return scores, None
    return scores.masked_fill(hidden, MASKED), hidden.all(-1, keepdim=True).expand(*scores.shape[:-1], 1)


def _for_queries(x: Tensor, options: Options) -> Tensor:
    """Keys or values, repeated for the query heads that share them."""
    return x.float().repeat_interleave(options.heads // x.shape[0], 0)


def _for_keys(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of what ``_for_queries`` repeated."""
    return grad.view(like.shape[0], -1, *grad.shape[1:]).sum(1)


class _Dropout:
    """The mask holds one bit for each score, document after document."""

    def __init__(self, options: Options) -> None:
        self.options, self.start = options, 0

    def __call__(self, probabilities: Tensor) -> Tensor:
        if self.options.drop_mask is None:
            return probabilities
        stop = self.start + probabilities.numel()
        kept = kept_elements(self.options.drop_mask, torch.Size((stop,)))[self.start :].view(probabilities.shape)
        return probabilities * kept / self.options.keep_prob

    def advance(self, probabilities: Tensor) -> None:
        self.start += probabilities.numel()


def _lengths(arguments: dict[str, Any]) -> tuple[list[int], list[int]] | None:
    if arguments["layout"] != "TND":
        return None
    require("query_lengths" in arguments, "layout TND needs the ends of the documents")
    return arguments["query_lengths"], arguments["key_lengths"]


def forward(**arguments: Any) -> None:
    q, k, v, out = (arguments[name] for name in ("q", "k", "v", "out"))
    options = Options.of(arguments)
    check(q, k, v, options, arguments)
    like_input = arguments.get("statistics_layout") == "same_as_input"
    drop = _Dropout(options)
    largest, total = arguments["softmax_max"], arguments["softmax_sum"]
    for document in _documents({"q": q, "out": out}, {"k": k, "v": v}, options, _lengths(arguments)):
        scores, empty = _scores(document, options)
        top = scores.amax(-1, keepdim=True) if scores.shape[-1] else scores.new_full((*scores.shape[:-1], 1), MASKED)
        weights = (scores - top).exp()
        denominator = weights.sum(-1, keepdim=True)
        probabilities = weights / denominator
        if empty is not None:
            probabilities = probabilities.masked_fill(empty, 0)
        document.tensors["out"].copy_(drop(probabilities) @ _for_queries(document.tensors["v"], options))
        drop.advance(probabilities)
        for statistics, value in ((largest, top), (total, denominator)):
            view = _statistics_view(statistics, document, options, like_input=like_input)
            view.copy_(value.expand(*value.shape[:-1], LANES))


def backward(**arguments: Any) -> None:
    q, k, v, dy, out = (arguments[name] for name in ("q", "k", "v", "dy", "attention"))
    options = Options.of(arguments)
    check(q, k, v, options, arguments)
    largest, total = arguments["softmax_max"], arguments["softmax_sum"]
    require(
        largest is not None and total is not None and out is not None,
        "softmax_max, softmax_sum and attention_in are needed",
    )
    require(largest.dtype == total.dtype == torch.float32, "the statistics are float32")
    require(largest.shape[-1] == total.shape[-1] == LANES, f"{LANES} lanes of each statistic, not {largest.shape}")
    require(dy.shape == out.shape and dy.dtype == q.dtype, f"the gradient {dy.shape} is like the output {out.shape}")
    like_input = arguments.get("statistics_layout") == "same_as_input"
    drop = _Dropout(options)
    by_query = {"q": q, "dy": dy, "out": out, "dq": arguments["dq"]}
    by_key = {"k": k, "v": v, "dk": arguments["dk"], "dv": arguments["dv"]}
    for document in _documents(by_query, by_key, options, _lengths(arguments)):
        t = document.tensors
        scores, empty = _scores(document, options)
        top = _statistics_view(largest, document, options, like_input=like_input)[..., :1]
        probabilities = (scores - top).exp() / _statistics_view(total, document, options, like_input=like_input)[
            ..., :1
        ]
        if empty is not None:
            probabilities = probabilities.masked_fill(empty, 0)
        grad = t["dy"].float()
        mean = (grad * t["out"].float()).sum(-1, keepdim=True)
        slope = probabilities * (drop(grad @ _for_queries(t["v"], options).mT) - mean)
        t["dv"].copy_(_for_keys(drop(probabilities).mT @ grad, t["v"]))
        drop.advance(probabilities)
        t["dq"].copy_(slope @ _for_queries(t["k"], options) * options.scale)
        t["dk"].copy_(_for_keys(slope.mT @ t["q"].float(), t["k"]) * options.scale)
        if options.pse is not None:
            dpse = arguments["dpse"]
            require(
                dpse.shape[0] == options.pse.shape[0] > 1 or document.index == 0,
                "the stand-in sums no pse over a batch",
            )
            dpse[document.index].copy_(slope.sum_to_size(dpse.shape[1:]))


KERNELS: dict[str, Callable[..., None]] = {
    "aclnnFlashAttentionScore": forward,
    "aclnnFlashAttentionVarLenScore": forward,
    "aclnnFlashAttentionVarLenScoreV4": forward,
    "aclnnFlashAttentionScoreGrad": backward,
    "aclnnFlashAttentionUnpaddingScoreGrad": backward,
    "aclnnFlashAttentionUnpaddingScoreGradV4": backward,
}
