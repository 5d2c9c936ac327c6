"""``linear_cross_entropy`` in chunks of rows: products by the device's library, what lies between them in Triton.

The logits of a chunk become their gradient in place, and the gradients of hidden states and weight are computed while
it is there (as in Liger, Hsu et al., 2024): three products, the least there is. The alternative, to go through all
rows once for each slice of the vocabulary, needs no sum over chunks, but a fourth product: a third more time.

Memory beyond inputs and returned gradients at T = 16384, D = 4096, V = 131072 in bfloat16: 0.5 GiB of logits, and
1 GiB of the float32 sum of the weight's gradient over chunks, half of whose 2 GiB lies where the result will
(``gradient_sum.py``). At D = 2048 it is 0.5 + 0.5 GiB. A model with the loss as a layer of its own holds at least
20 GiB: 4 of logits, 8 of them in float32, 8 of their log-probabilities; as much again comes and goes in its backward.
Each chunk reads and writes the float32 sum once: 8 chunks of 2048 rows move 32 GiB, about a tenth of the products'
time on an H100, so shorter chunks would be slower.
"""

from math import ceil
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from evocore.kernels.cross_entropy.rows import Terms
from evocore.kernels.cross_entropy.triton_backward import differentiate_rows, row_scales
from evocore.kernels.cross_entropy.triton_forward import evaluate_rows, weigh
from evocore.kernels.launch import Launch
from evocore.kernels.linear_cross_entropy.gradient_sum import GradientSum
from evocore.ops.cross_entropy import IGNORE_INDEX, LinearCrossEntropy, TokenLoss

ROWS = 2048
"""Of a chunk: enough for efficient products and for few passes over the sum of the weight's gradient."""
MOST = 2**28
"""Elements of a longer chunk's logits; what is saved by even longer ones is little."""


def linear_cross_entropy(launch: Launch) -> LinearCrossEntropy:
    def call(
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None = None,
        *,
        ignore_index: int = IGNORE_INDEX,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
    ) -> TokenLoss:
        assert softcap is None, "requests with a softcap are refused"
        grads = torch.is_grad_enabled()
        wants = (grads and hidden_TD.requires_grad, grads and weight_VD.requires_grad)
        terms = Terms(ignore_index, label_smoothing, z_loss)
        return TokenLoss(*_LinearCrossEntropy.apply(hidden_TD, weight_VD, labels_T, weights_T, terms, wants, launch))

    return call


def chunk_rows(tokens: int, vocab: int) -> int:
    """Rows of a chunk: equal chunks, two at least, of ``ROWS`` or up to a sixteenth of all rows if those are many."""
    longest = max(ROWS, min(tokens // 16, MOST // vocab))
    return max(1, ceil(tokens / max(2, ceil(tokens / longest))))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        labels_T: Tensor,
        weights_T: Tensor | None,
        terms: Terms,
        wants: tuple[bool, bool],
        launch: Launch,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens, vocab = len(hidden_TD), len(weight_VD)
        labels_T = labels_T.contiguous()
        loss_T, lse_T = hidden_TD.new_empty(2, tokens, dtype=torch.float32)
        correct_T = torch.empty_like(labels_T, dtype=torch.bool)
        unit = _unit(weights_T, hidden_TD)
        scale_T = row_scales(labels_T, weights_T, terms) / unit
        rows = chunk_rows(tokens, vocab)
        logits_RV = hidden_TD.new_empty(rows, vocab)
        grad_hidden_TD = hidden_TD.new_empty(hidden_TD.shape) if wants[0] else None
        weight_sum = GradientSum(weight_VD) if wants[1] else None
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            hidden_CD, labels_C, lse_C = hidden_TD[part], labels_T[part], lse_T[part]
            logits_CV = torch.mm(hidden_CD, weight_VD.T, out=logits_RV[: len(hidden_CD)])
            evaluate_rows(launch, logits_CV, labels_C, terms, loss_T[part], correct_T[part], lse_C)
            if not any(wants):
                continue
            rows_of_chunk = (logits_CV, labels_C, lse_C, scale_T[part])
            differentiate_rows(launch, *rows_of_chunk, logits_CV, vocab, terms.label_smoothing, terms.z_loss)
            if grad_hidden_TD is not None:
                torch.mm(logits_CV, weight_VD, out=grad_hidden_TD[part])
            if weight_sum is not None:
                weight_sum.add_product(logits_CV.T, hidden_CD)
        grad_weight_VD = None if weight_sum is None else weight_sum.result()
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(loss_T, correct_T)
        # Not among the saved tensors: they are scaled in place, and handed over rather than copied.
        ctx.gradients, ctx.unit, ctx.launch = (grad_hidden_TD, grad_weight_VD), unit, launch
        return weigh(loss_T, weights_T), loss_T, correct_T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_total is None:
            return (None,) * 7
        if ctx.gradients is None:
            raise RuntimeError(
                "the total of linear_cross_entropy can be differentiated once: backward uses up gradients"
            )
        gradients, ctx.gradients = ctx.gradients, None
        for grad in gradients:
            if grad is not None:
                _scale(ctx.launch, grad, grad_total * ctx.unit)
        return (*gradients, None, None, None, None, None)


def _unit(weights_T: Tensor | None, hidden_TD: Tensor) -> Tensor:
    """What weights are measured in while gradients are computed, float32 ``[1]``.

    The weight of one token among millions is below what float16 resolves, so there the largest is made 1.
    """
    if weights_T is None or not len(weights_T) or hidden_TD.dtype != torch.float16:
        return hidden_TD.new_ones(1, dtype=torch.float32)
    return weights_T.float().abs().amax(0, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)


def _scale(launch: Launch, x: Tensor, factor: Tensor) -> None:
    """Multiply contiguous ``x`` by a float32 number on the device, which PyTorch would round to the dtype of x."""
    block = launch.elements
    blocks = triton.cdiv(x.numel(), block)
    grid = (launch.programs(x.device, blocks),)
    _scale_in_place[grid](x, factor, x.numel(), blocks, BLOCK=block, num_warps=launch.warps(block))


@triton.jit
def _scale_in_place(x_ptr, factor_ptr, size, blocks, BLOCK: tl.constexpr):
    factor = tl.load(factor_ptr)
    # Where the loss is differentiated by itself the factor is 1, and there is nothing to move.
    for block in tl.range(tl.program_id(0), tl.where(factor == 1, 0, blocks), tl.num_programs(0)):
        offsets = tl.cast(block, tl.int64) * BLOCK + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + offsets, mask=offsets < size, other=0.0).to(tl.float32)
        tl.store(x_ptr + offsets, (x * factor).to(x_ptr.dtype.element_ty), mask=offsets < size)
