"""One function for each of torch_npu's operators, under its name: checks, memory for the results, values.

What an operator refuses is from the C++ of torch_npu (then in its words) or from the vendor's documentation of the
operator on Atlas A2; constraints that the stand-in for CANN checks in the kernel that is called are not repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from standin_cann import attention_options, kernels_attention, kernels_elementwise, kernels_experts
from standin_cann.host import host_view
from standin_cann.opapi import require
from torch import Tensor

Arguments = dict[str, Any]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LANES = kernels_attention.LANES
MOST_ROTATED_HEADS, MOST_CHOICES = 1000, 16_777_215


def _run(kernel: Callable[..., None], *arguments: Any, **named: Any) -> None:
    """Run a kernel of the stand-in for CANN on the memory of the device."""

    def on_host(value: Any) -> Any:
        if isinstance(value, Tensor):
            return host_view(value)
        return [on_host(entry) for entry in value] if isinstance(value, list | tuple) else value

    kernel(*map(on_host, arguments), **{name: on_host(value) for name, value in named.items()})


def _like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)


# --- attention ------------------------------------------------------------------------------------------------------


def _attention_options(a: Arguments, scale: float, keep_prob: float) -> Arguments:
    """What both directions are told, by the stand-in's names, once it is checked."""
    layout, mode, packed = a["input_layout"], a["sparse_mode"], a["input_layout"] == "TND"
    ends = a["actual_seq_qlen"], a["actual_seq_kvlen"]
    require(a["head_num"] > 0, f"head_num must > 0, but got {a['head_num']}")
    require(
        layout in attention_options.QUERY_AXES,
        f"The input_layout should be BSH/SBH/BNSD/BSND/TND(case-insensitive), but got {layout}",
    )
    require(0 < keep_prob <= 1, f"The keep_prob value must be in range of (0, 1], but got {keep_prob}")
    require(keep_prob == 1, "this stand-in drops nothing")
    bounds = (0 <= mode < 5 or 5 < mode <= 8) if packed else 0 <= mode <= 6
    span = "[0,5) or (5,8]" if packed else "[0,6]"
    require(bounds, f"The sparse_mode value must be in range of {span}, but got {mode}")
    require(
        not packed or bool(ends[0] and ends[1] and len(ends[0]) == len(ends[1])),
        "the size of actual_seq_qlen and actual_seq_kvlen must be the same and cannot be empty.",
    )
    require(
        a["softmax_layout"] in ("", "TND") and (packed or not a["softmax_layout"]),
        "softmax_layout=TND only supported when input_layout_str=TND",
    )
    require(a["sink"] is None, "this stand-in has no sink")
    options = {
        "pse": a["pse"], "drop_mask": None, "padding_mask": a["padding_mask"], "mask": a["atten_mask"],
        "prefix": a["prefix"], "scale": scale, "keep_prob": keep_prob, "before": a["pre_tockens"],
        "after": a["next_tockens"], "heads": a["head_num"], "layout": layout, "sparse_mode": mode,
    }  # fmt: skip
    if packed:
        _check_rows(a, *ends)
        options |= {"query_lengths": list(ends[0]), "key_lengths": list(ends[1])}
        options |= {"statistics_layout": "same_as_input" if a["softmax_layout"] else ""}
    return options


def _check_rows(a: Arguments, q_ends: list[int], k_ends: list[int]) -> None:
    """No row of packed scores may be masked as a whole: the chip then gives numbers that mean nothing."""
    right_down = a["sparse_mode"] in (attention_options.RIGHT_DOWN_CAUSAL, attention_options.BAND)
    if a["atten_mask"] is None or not right_down:
        return
    for q_start, q_end, k_start, k_end in zip([0, *q_ends], q_ends, [0, *k_ends], k_ends, strict=False):
        require(
            q_end <= q_start or q_end - q_start <= k_end - k_start,
            f"some of {q_end - q_start} queries see none of {k_end - k_start} keys under this mask",
        )


def npu_fusion_attention(a: Arguments) -> Any:
    q, v, layout = a["query"], a["value"], a["input_layout"]
    options = _attention_options(a, a["scale"], a["keep_prob"])
    shape = list(q.shape)
    if layout in ("BNSD", "BSND", "TND"):
        shape[-1] = v.shape[-1]
    if layout == "TND":
        lead = [q.shape[0], a["head_num"]]
    else:
        axes = attention_options.QUERY_AXES[layout]
        lead = [q.shape[axes.index("b")], a["head_num"], q.shape[axes.index("s")]]
    out = torch.empty(shape, dtype=q.dtype, device=q.device)
    largest, total = (torch.empty([*lead, LANES], dtype=torch.float32, device=q.device) for _ in range(2))
    _run(kernels_attention.forward, q=q, k=a["key"], v=v, out=out, softmax_max=largest, softmax_sum=total, **options)
    return out, largest, total, torch.empty(0, dtype=q.dtype, device=q.device), 0, 0, 0


def npu_fusion_attention_grad(a: Arguments) -> Any:
    q, k, v = a["query"], a["key"], a["value"]
    options = _attention_options(a, a["scale_value"], a["keep_prob"])
    grads = dq, dk, dv = _like(q), _like(k), _like(v)
    require(a["pse"] is None, "this stand-in differentiates no pse")
    _run(
        kernels_attention.backward, q=q, k=k, v=v, dy=a["dy"], attention=a["attention_in"],
        softmax_max=a["softmax_max"], softmax_sum=a["softmax_sum"], dq=dq, dk=dk, dv=dv, dpse=None, **options,
    )  # fmt: skip
    nothing = torch.empty(0, dtype=q.dtype, device=q.device)
    return *grads, nothing, nothing


# --- norms ----------------------------------------------------------------------------------------------------------


def _rstd(x: Tensor, gamma: Tensor) -> Tensor:
    lead = x.shape[: x.dim() - gamma.dim()]
    return torch.empty([*lead, *(1 for _ in gamma.shape)], dtype=torch.float32, device=x.device)


def npu_rms_norm(a: Arguments) -> Any:
    x, gamma = a["input"], a["gamma"]
    require(2 <= x.dim() <= 8, f"input has 2 to 8 dimensions, not {x.dim()}")
    y, rstd = _like(x), _rstd(x, gamma)
    _run(kernels_elementwise.rms_norm, x, gamma, a["epsilon"], y, rstd)
    return y, rstd


def npu_rms_norm_backward(a: Arguments) -> Any:
    x, gamma = a["input"], a["gamma"]
    dx, dgamma = _like(x), _like(gamma, torch.float32)
    _run(kernels_elementwise.rms_norm_grad, a["dy"], x, a["rstd"], gamma, dx, dgamma)
    return dx, dgamma


def npu_add_rms_norm(a: Arguments) -> Any:
    x, gamma = a["x1"], a["gamma"]
    require(x.numel() > 0, "x1 is not empty")
    y, rstd, total = _like(x), _rstd(x, gamma), _like(x)
    _run(kernels_elementwise.add_rms_norm, x, a["x2"], gamma, a["epsilon"], y, rstd, total)
    return y, rstd, total


# --- rotary embedding and gated activations -------------------------------------------------------------------------


def _rotary_mode(a: Arguments) -> int:
    """Its number, once the shapes and the mode are checked."""
    x, r1, mode = a["input"], a["r1"], a["rotary_mode"]
    require(mode in kernels_elementwise.MODES, "The rotary_mode of npu_rotary_mul should be half or interleave")
    require(a.get("rotate") is None, "rotate has no backward")
    require(x.shape[-2] < MOST_ROTATED_HEADS, f"heads are fewer than {MOST_ROTATED_HEADS}, not {x.shape[-2]}")
    if mode == "interleave":
        require(r1.shape[-2] == 1 and x.dim() in (3, 4), f"interleave wants one cosine for all heads, not {r1.shape}")
    return kernels_elementwise.MODES.index(mode)


def npu_rotary_mul(a: Arguments) -> Any:
    x, mode, out = a["input"], _rotary_mode(a), _like(a["input"])
    _run(kernels_elementwise.rotary, x, a["r1"].to(x.dtype), a["r2"].to(x.dtype), mode, out)
    return out


def npu_rotary_mul_backward(a: Arguments) -> Any:
    x, mode = a["input"], _rotary_mode(a)
    r1, r2 = a["r1"].to(x.dtype), a["r2"].to(x.dtype)
    grads = dx, dr1, dr2 = _like(x), _like(r1), _like(r2)
    _run(kernels_elementwise.rotary_grad, a["grad"], r1, r2, x, mode, dx, dr1, dr2)
    return grads


def _check_activated(*tensors: Tensor) -> None:
    for x in tensors:
        require(x.is_contiguous() and x.numel() > 0, f"tensors are contiguous and not empty: {x.shape}, {x.stride()}")


def _half(x: Tensor, dim: int) -> Tensor:
    shape = list(x.shape)
    shape[dim] //= 2
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def npu_swiglu(a: Arguments) -> Any:
    x, out = a["input"], _half(a["input"], a["dim"])
    _check_activated(x)
    _run(kernels_elementwise.swiglu, x, a["dim"], out)
    return out


def npu_swiglu_backward(a: Arguments) -> Any:
    dx = _like(a["input"])
    _check_activated(a["grad_output"], a["input"])
    _run(kernels_elementwise.swiglu_grad, a["grad_output"], a["input"], a["dim"], dx)
    return dx


def npu_geglu(a: Arguments) -> Any:
    x = a["input"]
    _check_activated(x)
    out, gelu = _half(x, a["dim"]), _half(x, a["dim"])
    _run(kernels_elementwise.geglu, x, a["dim"], a["approximate"], a["activate_left"], out, gelu)
    return out, gelu


def npu_geglu_grad(a: Arguments) -> Any:
    dx, options = _like(a["input"]), (a["dim"], a["approximate"], a["activate_left"])
    _check_activated(a["grad_output"], a["input"], a["gelu"])
    _run(kernels_elementwise.geglu_grad, a["grad_output"], a["input"], a["gelu"], *options, dx)
    return dx


# --- experts --------------------------------------------------------------------------------------------------------


def npu_grouped_matmul(a: Arguments) -> Any:
    x, weight, kind = a["x"], a["weight"], a["group_type"]
    require(len(x) == 1 and len(weight) == 1, "this stand-in takes one x and one weight")
    require(kind in (kernels_experts.ROWS, kernels_experts.INNER), f"this stand-in knows no group_type {kind}")
    require(a["group_list"] is not None, "group_type needs group_list")
    require(a["split_item"] in (2, 3), f"one output wants split_item 2 or 3, not {a['split_item']}")
    rows, columns = x[0].shape[0], weight[0].shape[-1]
    shape = [rows, columns] if kind == kernels_experts.ROWS else [len(a["group_list"]), rows, columns]
    out = torch.empty(shape, dtype=x[0].dtype, device=x[0].device)
    _run(
        kernels_experts.grouped_matmul, x=x, weight=weight, bias=a["bias"] or [], group_list=a["group_list"],
        split_item=a["split_item"], group_type=kind, group_list_type=a["group_list_type"], out=[out],
        scale=a["scale"], offset=a["offset"], antiquant_scale=a["antiquant_scale"],
        antiquant_offset=a["antiquant_offset"], per_token_scale=a["per_token_scale"],
        activation_input=a["activation_input"], activation_scale=a["activation_quant_scale"],
        activation_offset=a["activation_quant_offset"], activation=a["act_type"],
    )  # fmt: skip
    return [out]


def npu_moe_token_permute(a: Arguments) -> Any:
    tokens, indices = a["tokens"], a["indices"]
    require(indices.dtype == torch.int64, f"indices are int64, not {indices.dtype}")
    require(indices.numel() < MOST_CHOICES, f"fewer than {MOST_CHOICES} choices, not {indices.numel()}")
    wanted = a["num_out_tokens"] or 0
    rows = min(wanted, indices.numel()) if wanted > 0 else indices.numel() + wanted
    permuted = torch.empty([rows, *tokens.shape[1:]], dtype=tokens.dtype, device=tokens.device)
    place = torch.empty(indices.numel(), dtype=torch.int32, device=tokens.device)
    _run(kernels_experts.permute, tokens, indices, rows, a["padded_mode"], permuted, place)
    return permuted, place


def npu_moe_token_permute_grad_v2(a: Arguments) -> Any:
    grad, count = a["grad_permuted_tokens"], a["tokens_size_0"]
    dtokens = torch.empty([count, *grad.shape[1:]], dtype=a["tokens_dtype"], device=grad.device)
    _run(kernels_experts.permute_grad, grad, a["sorted_indices"], a["num_topK"], a["padded_mode"], dtokens)
    return dtokens


def npu_moe_token_unpermute(a: Arguments) -> Any:
    rows, place, probs = a["permuted_tokens"], a["sorted_indices"], a["probs"]
    choices = 1 if probs is None else probs.shape[1]
    out = torch.empty([place.numel() // choices, *rows.shape[1:]], dtype=rows.dtype, device=rows.device)
    _run(kernels_experts.unpermute, rows, place, probs, a["padded_mode"], a["restore_shape"] or [], out)
    return out


def npu_moe_token_unpermute_grad_v2(a: Arguments) -> Any:
    grad, rows, probs = a["grad_unpermuted_tokens"], a["permuted_tokens"], a["probs"]
    dpermuted = torch.empty(
        [a["permuted_tokens_size_0"], *grad.shape[1:]], dtype=a["permuted_tokens_dtype"], device=grad.device
    )
    dprobs = torch.empty(0, device=grad.device) if probs is None else _like(probs)
    _run(
        kernels_experts.unpermute_grad, rows, grad, a["sorted_indices"], probs, a["padded_mode"],
        a["restore_shape"] or [], dpermuted, None if probs is None else dprobs,
    )  # fmt: skip
    return dpermuted, dprobs
