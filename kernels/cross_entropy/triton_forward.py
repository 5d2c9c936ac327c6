"""Losses of rows of logits, and the statistics of a shard of them, in Triton.

A program walks along one row at a time with a running maximum (Milakov and Gimelshein, 2018), so that one pass is
enough, and the next tile is on its way while it works on this one.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from evocore.kernels.cross_entropy.rows import Terms
from evocore.kernels.launch import Launch
from evocore.ops.cross_entropy import ShardStatistics

_LOWEST = tl.constexpr(-3.0e38)
"""Where a running maximum starts: finite, because ``-inf - -inf`` is not a number."""


def with_whole_rows(x_TD: Tensor) -> Tensor:
    """``x_TD`` itself if the elements of a row are neighbours, otherwise a copy."""
    return x_TD if x_TD.stride(-1) == 1 else x_TD.contiguous()


def weigh(loss_T: Tensor, weights_T: Tensor | None) -> Tensor:
    """``total`` of the contract, summed in the same order each time."""
    return (loss_T if weights_T is None else loss_T * weights_T).sum()


def evaluate_rows(
    launch: Launch,
    logits_TV: Tensor,
    labels_T: Tensor,
    terms: Terms,
    loss_T: Tensor,
    correct_T: Tensor,
    lse_T: Tensor,
) -> None:
    """Write loss, correctness and ``logsumexp`` of each row to the last three; the latter is 0 if it is ignored.

    Args:
        logits_TV: whole rows, any stride between them.
        labels_T, loss_T, correct_T, lse_T: contiguous.
    """
    tokens, vocab = logits_TV.shape
    constants, warps = _row_tile(launch, logits_TV)
    _evaluate[(launch.programs(logits_TV.device, tokens),)](
        logits_TV,
        labels_T,
        loss_T,
        correct_T,
        lse_T,
        tokens,
        vocab,
        logits_TV.stride(0),
        terms.ignore_index,
        terms.label_smoothing,
        terms.z_loss,
        SMOOTHS=terms.label_smoothing != 0,
        **constants,
        num_warps=warps,
    )


def shard_rows(launch: Launch, logits_TV: Tensor, labels_T: Tensor) -> ShardStatistics:
    """``ShardForward`` of whole rows, any stride between them, and contiguous labels."""
    tokens, vocab = logits_TV.shape
    statistics = ShardStatistics(*logits_TV.new_empty(4, tokens, dtype=torch.float32))
    constants, warps = _row_tile(launch, logits_TV)
    grid = (launch.programs(logits_TV.device, tokens),)
    _summarise[grid](
        logits_TV, labels_T, *statistics, tokens, vocab, logits_TV.stride(0), **constants, num_warps=warps
    )
    return statistics


def tile_size(launch: Launch, vocab: int) -> int:
    """Elements of a tile: twice those of an elementwise kernel, since of its operands there is only one."""
    return min(2 * launch.elements, max(16, 1 << (vocab - 1).bit_length()))


def _row_tile(launch: Launch, logits_TV: Tensor) -> tuple[dict[str, int], int]:
    """Shape of a tile in forward, and warps: as wide as the threads load at once, 16 bytes each.

    Then all elements of a column belong to one thread, which needs no other for their maximum and sum.
    """
    block = tile_size(launch, logits_TV.shape[1])
    warps = launch.warps(block)
    lanes = min(block, 32 * warps * (16 // logits_TV.element_size()))
    return {"STEPS": block // lanes, "LANES": lanes}, warps


@triton.jit
def _statistics(row_ptr, vocab, SUMS: tl.constexpr, STEPS: tl.constexpr, LANES: tl.constexpr):
    """Largest element of a row, the sum of ``exp(x - largest)``, and with ``SUMS`` the sum of x.

    Each lane keeps its own maximum and sums; they meet at the end of the row.
    """
    columns = tl.arange(0, STEPS)[:, None] * LANES + tl.arange(0, LANES)[None, :]
    largest = tl.full((LANES,), _LOWEST, tl.float32)
    exps = tl.zeros((LANES,), tl.float32)
    sums = tl.zeros((LANES,), tl.float32)
    ahead = tl.load(row_ptr + columns, mask=columns < vocab, other=float("-inf"))
    for start in tl.range(0, vocab, STEPS * LANES):
        x = ahead.to(tl.float32)
        following = start + STEPS * LANES + columns
        ahead = tl.load(row_ptr + following, mask=following < vocab, other=float("-inf"))
        higher = tl.maximum(largest, tl.max(x, 0))
        exps = exps * tl.exp(largest - higher) + tl.sum(tl.exp(x - higher[None, :]), 0)
        largest = higher
        if SUMS:
            sums += tl.sum(tl.where(start + columns < vocab, x, 0.0), 0)
    top = tl.max(largest, 0)
    return top, tl.sum(exps * tl.exp(largest - top), 0), tl.sum(sums, 0)


@triton.jit
def _evaluate(
    logits_ptr,
    labels_ptr,
    loss_ptr,
    correct_ptr,
    lse_ptr,
    tokens,
    vocab,
    stride,
    ignore_index,
    label_smoothing,
    z_loss,
    SMOOTHS: tl.constexpr,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
):
    for row in tl.range(tl.program_id(0), tokens, tl.num_programs(0)):
        label = tl.load(labels_ptr + row)
        counted = label != ignore_index
        row_ptr = logits_ptr + tl.cast(row, tl.int64) * stride
        # Nothing is read of an ignored row. A label that is not in the vocabulary is a fault, and its loss shows it.
        inside = counted & (label >= 0) & (label < vocab)
        target = tl.load(row_ptr + label, mask=inside, other=float("nan")).to(tl.float32)
        top, exps, total = _statistics(row_ptr, tl.where(counted, vocab, 0), SMOOTHS, STEPS, LANES)
        log_sum = tl.log(tl.where(counted, exps, 1.0))
        lse = tl.where(counted, top + log_sum, 0.0)
        loss = (top - target) + log_sum
        if SMOOTHS:
            loss = (1 - label_smoothing) * loss + label_smoothing * (lse - total / vocab)
        loss += z_loss * lse * lse
        tl.store(loss_ptr + row, tl.where(counted, loss, 0.0))
        tl.store(correct_ptr + row, counted & (target >= top))
        tl.store(lse_ptr + row, lse)


@triton.jit
def _summarise(
    logits_ptr,
    labels_ptr,
    lse_ptr,
    label_ptr,
    sum_ptr,
    largest_ptr,
    tokens,
    vocab,
    stride,
    STEPS: tl.constexpr,
    LANES: tl.constexpr,
):
    for row in tl.range(tl.program_id(0), tokens, tl.num_programs(0)):
        label = tl.load(labels_ptr + row)
        row_ptr = logits_ptr + tl.cast(row, tl.int64) * stride
        target = tl.load(row_ptr + label, mask=(label >= 0) & (label < vocab), other=0.0).to(tl.float32)
        top, exps, total = _statistics(row_ptr, vocab, True, STEPS, LANES)
        tl.store(lse_ptr + row, top + tl.log(exps))
        tl.store(label_ptr + row, target)
        tl.store(sum_ptr + row, total)
        # Of nothing but -inf, which a shard of padding holds, the running maximum saw nothing.
        tl.store(largest_ptr + row, tl.where(exps == 0, float("-inf"), top))
