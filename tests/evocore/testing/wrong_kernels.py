"""Kernels that are wrong, each in one way: what the conformance kit must find.

They are reached as those of a plug-in are, by the name of this module.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import torch
from torch import Tensor

from evocore.kernels.attention.reference import attention_block
from evocore.kernels.cross_entropy.reference import cross_entropy_shard
from evocore.kernels.grouped_linear.reference import grouped_linear
from evocore.kernels.moe_permute.reference import moe_permute
from evocore.ops.moe import Permutation

# Of rms_norm


def right(x: Tensor, weight: Tensor, *, eps: float, unit_offset: bool = False) -> Tensor:
    compute = torch.promote_types(x.dtype, torch.float32)
    x_, weight_ = x.to(compute), weight.to(compute) + unit_offset
    return (x_ * (x_.square().mean(-1, keepdim=True) + eps).rsqrt() * weight_).to(x.dtype)


def wrong_gradient(x, weight, **options):
    compute = torch.promote_types(x.dtype, torch.float32)
    scale = (x.detach().to(compute).square().mean(-1, keepdim=True) + options["eps"]).rsqrt()
    return (x.to(compute) * scale * (weight.to(compute) + options["unit_offset"])).to(x.dtype)


def wrong_value(x, weight, **options):
    return right(x, weight, **options | {"eps": 1e-2})


def no_gradient(x, weight, **options):
    return right(x, weight, **options).detach()


def changes_an_input(x, weight, **options):
    y = right(x, weight, **options)
    x.detach().mul_(1.5)
    return y


class ChangesWhatComesFromAbove(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.clone()

    @staticmethod
    def backward(ctx, grad):
        copy = grad.clone()
        grad.zero_()
        return copy


def changes_a_gradient(x, weight, **options):
    return ChangesWhatComesFromAbove.apply(right(x, weight, **options))


CALLS = count()


def never_the_same(x, weight, **options):
    return right(x, weight, **options) * (1 + next(CALLS) % 2 * 1.2e-7)


def coarse_in_low_precision(x, weight, **options):
    y = right(x, weight, **options)
    return y * 1.04 if y.dtype.itemsize == 2 else y


def wrong_dtype(x, weight, **options):
    return right(x, weight, **options).float()


def wrong_shape(x, weight, **options):
    return right(x, weight, **options)[None]


def needs_a_token(x, weight, **options):
    largest = x.detach().abs().max()
    return right(x * (largest / largest if largest else 1), weight, **options)


def ignores_strides(x, weight, **options):
    return right(x.as_strided(x.shape, (x.shape[1], 1)), weight, **options)


class Scaled(torch.autograd.Function):
    """``x * w`` of which the gradient of w is wrong where x needs none."""

    @staticmethod
    def forward(ctx, normal, weight):
        ctx.save_for_backward(normal, weight)
        return normal * weight

    @staticmethod
    def backward(ctx, grad):
        normal, weight = ctx.saved_tensors
        both = grad * weight if ctx.needs_input_grad[0] else None
        return both, (grad * normal).sum(0) if both is not None else torch.zeros_like(weight)


def needs_all_gradients(x, weight, **options):
    ones = torch.ones_like(weight)
    normal = right(x, ones, **options | {"unit_offset": False})
    return Scaled.apply(normal, weight + options["unit_offset"])


def reads_before_it_writes(x, weight, **options):
    y = right(x, weight, **options)
    return y + 0 * torch.empty_like(y)


def wrong_without_gradients(x, weight, **options):
    return right(x, weight, **options) * (1 if torch.is_grad_enabled() else 2)


def wrong_beyond_40(x, weight, **options):
    return right(x, weight, **options) * (2 if x.shape[0] > 1 and x.shape[1] > 40 else 1)


# Of ops whose kernels are not plain functions: made of the references


def _block_in_base_2(*args, **options):
    out, lse = attention_block.forward(*args, **options)
    return out, lse * 1.4426950408889634


def _block_without_the_whole_row(grad, q, k, v, out, lse, **options):
    mine, my_lse = attention_block.forward(q, k, v, **options)
    return attention_block.backward(grad, q, k, v, mine, my_lse, **options)


def _block_in_float32(*args, **options):
    return tuple(x.float() for x in attention_block.backward(*args, **options))


def _shard_sum_of_another(logits_TV, labels_T):
    statistics = cross_entropy_shard.forward(logits_TV, labels_T)
    return statistics._replace(sum_T=statistics.sum_T * 2)


def _shard_whole_vocabulary(*args, vocab, **options):
    return cross_entropy_shard.backward(*args, vocab=args[0].shape[1], **options)


def _shard_transposed(*args, **options):
    return cross_entropy_shard.backward(*args, **options).T.contiguous().T


block_in_base_2 = attention_block._replace(forward=_block_in_base_2)
block_without_the_whole_row = attention_block._replace(backward=_block_without_the_whole_row)
block_in_float32 = attention_block._replace(backward=_block_in_float32)
shard_sum_of_another = cross_entropy_shard._replace(forward=_shard_sum_of_another)
shard_whole_vocabulary = cross_entropy_shard._replace(backward=_shard_whole_vocabulary)
shard_transposed = cross_entropy_shard._replace(backward=_shard_transposed)


def permute_backwards(x_TD, experts_TK, *, experts):
    """Rows of one expert in the wrong order."""
    rows_RD, permutation = moe_permute(x_TD.flip(0), experts_TK.flip(0), experts=experts)
    count_ = experts_TK.numel()
    row_TK = permutation.row_TK.flip(0)
    source_R = torch.empty_like(permutation.source_R)
    source_R[row_TK.flatten().long()] = torch.arange(count_, dtype=torch.int32)
    return rows_RD, Permutation(row_TK, source_R, permutation.groups)


def permute_without_inverse(x_TD, experts_TK, *, experts):
    rows_RD, permutation = moe_permute(x_TD, experts_TK, experts=experts)
    return rows_RD, replace(permutation, source_R=permutation.row_TK.flatten())


def unpermute_what_was_dropped(rows_RD, permutation, weights_TK):
    return (rows_RD[permutation.row_TK.long()] * weights_TK[..., None]).sum(1).to(rows_RD.dtype)


def grouped_with_nobodys(x_RD, weight_EFD, groups):
    y_RF = grouped_linear(x_RD, weight_EFD, groups)
    nobodys = torch.arange(len(x_RD))[:, None] >= groups.ends_E[-1]
    return y_RF.masked_fill(nobodys, 1.0)


def adamw_that_scales_gradients(params, grads, exp_avgs, exp_avg_sqs, **options):
    for gradient in grads:
        gradient.mul_(0.5)
