"""Gradients of rows of logits in Triton, from what forward knows of a row: one reading and one writing of it."""

import triton
import triton.language as tl
from torch import Tensor

from evocore.kernels.cross_entropy.rows import Terms
from evocore.kernels.cross_entropy.triton_forward import tile_size
from evocore.kernels.launch import Launch


def row_scales(labels_T: Tensor, weights_T: Tensor | None, terms: Terms) -> Tensor:
    """Weight of each row's gradient, float32; 0 where the label is ignored."""
    counted_T = labels_T != terms.ignore_index
    return counted_T.float() if weights_T is None else weights_T.float().where(counted_T, 0)


def differentiate_rows(
    launch: Launch,
    logits_TV: Tensor,
    labels_T: Tensor,
    lse_T: Tensor,
    scale_T: Tensor,
    grad_TV: Tensor,
    vocab: int,
    label_smoothing: float,
    z_loss: float,
) -> None:
    """Write the gradient of ``ShardBackward`` to ``grad_TV``, which may be ``logits_TV`` itself.

    Args:
        logits_TV: whole rows, any stride between them.
        labels_T, lse_T, scale_T, grad_TV: contiguous.
        vocab: size of the whole vocabulary.
    """
    tokens, width = logits_TV.shape
    block = tile_size(launch, width)
    _differentiate[(launch.programs(logits_TV.device, tokens),)](
        logits_TV,
        labels_T,
        lse_T,
        scale_T,
        grad_TV,
        tokens,
        width,
        logits_TV.stride(0),
        label_smoothing,
        label_smoothing / vocab,
        z_loss,
        BLOCK=block,
        num_warps=launch.warps(block),
    )


@triton.jit
def _differentiate(
    logits_ptr,
    labels_ptr,
    lse_ptr,
    scale_ptr,
    grad_ptr,
    tokens,
    width,
    stride,
    label_smoothing,
    uniform,
    z_loss,
    BLOCK: tl.constexpr,
):
    for row in tl.range(tl.program_id(0), tokens, tl.num_programs(0)):
        label = tl.load(labels_ptr + row)
        scale = tl.load(scale_ptr + row)
        # Nothing is read of a row without weight, and whatever its logits are, its gradient is 0.
        lse = tl.where(scale != 0, tl.load(lse_ptr + row), 0.0)
        read = tl.where(scale != 0, width, 0)
        slope = scale * (1 + 2 * z_loss * lse)
        at_label = scale * (1 - label_smoothing)
        row_ptr = logits_ptr + tl.cast(row, tl.int64) * stride
        out_ptr = grad_ptr + tl.cast(row, tl.int64) * width
        for start in tl.range(0, width, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            x = tl.load(row_ptr + columns, mask=columns < read, other=float("-inf"), eviction_policy="evict_first")
            grad = slope * tl.exp(x.to(tl.float32) - lse) - scale * uniform
            grad = tl.where(columns == label, grad - at_label, grad)
            tl.store(out_ptr + columns, grad.to(grad_ptr.dtype.element_ty), mask=columns < width)
