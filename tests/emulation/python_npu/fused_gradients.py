"""Gradients of torch_npu's operators, by the operators that torch_npu's own autograd formulas call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from python_npu.fused_kernels import Arguments
from torch import Tensor


def _fusion_attention(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    alike = ("pse", "padding_mask", "atten_mask", "keep_prob", "pre_tockens", "next_tockens", "inner_precise")
    alike += ("prefix", "actual_seq_qlen", "actual_seq_kvlen", "sparse_mode", "softmax_layout", "sink")
    out, largest, total, softmax = results
    dq, dk, dv, *_ = torch.ops.npu.npu_fusion_attention_grad(
        a["query"], a["key"], a["value"], grad.contiguous(), a["head_num"], a["input_layout"],
        softmax_max=largest, softmax_sum=total, softmax_in=softmax, attention_in=out, scale_value=a["scale"],
        **{name: a[name] for name in alike},
    )  # fmt: skip
    return {"query": dq, "key": dk, "value": dv}


def _rms_norm(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    dx, dgamma = torch.ops.npu.npu_rms_norm_backward(grad, a["input"], a["gamma"], results[1])
    return {"input": dx, "gamma": dgamma.to(a["gamma"].dtype)}


def _rotary_mul(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    dx, dr1, dr2 = torch.ops.npu.npu_rotary_mul_backward(grad, a["input"], a["r1"], a["r2"], a["rotary_mode"])
    return {"input": dx, "r1": dr1, "r2": dr2}


def _swiglu(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    return {"input": torch.ops.npu.npu_swiglu_backward(grad.contiguous(), a["input"], a["dim"])}


def _geglu(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    options = (a["dim"], a["approximate"], a["activate_left"])
    return {"input": torch.ops.npu.npu_geglu_grad(grad.contiguous(), a["input"], results[1], *options)}


def _permute(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    tokens, top_k = a["tokens"], a["indices"].shape[1] if a["indices"].dim() == 2 else 1
    dtokens = torch.ops.npu.npu_moe_token_permute_grad_v2(grad, results[1], len(tokens), tokens.dtype, top_k)
    return {"tokens": dtokens}


def _unpermute(a: Arguments, results: Sequence[Tensor], grad: Tensor) -> Arguments:
    rows, probs = a["permuted_tokens"], a["probs"]
    dpermuted, dprobs = torch.ops.npu.npu_moe_token_unpermute_grad_v2(
        grad, a["sorted_indices"], len(rows), rows.dtype, probs, permuted_tokens=rows
    )
    return {"permuted_tokens": dpermuted} | ({} if probs is None else {"probs": dprobs})


GRADIENTS: dict[str, Callable[[Arguments, Sequence[Tensor], Tensor], Arguments]] = {
    "npu_fusion_attention": _fusion_attention,
    "npu_rms_norm": _rms_norm,
    "npu_rotary_mul": _rotary_mul,
    "npu_swiglu": _swiglu,
    "npu_geglu": _geglu,
    "npu_moe_token_permute": _permute,
    "npu_moe_token_unpermute": _unpermute,
}
"""Given the arguments, the tensors that were returned and the gradient of the first: gradients by argument."""
