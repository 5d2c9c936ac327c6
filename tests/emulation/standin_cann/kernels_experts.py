"""aclnn kernels of mixtures of experts: the grouped matrix product, and tokens to the rows of their experts and back.

Constraints are those that the vendor's documentation states for Atlas A2 without quantisation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from standin_cann.opapi import require
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
BIAS_DTYPES = {torch.float32: torch.float32, torch.float16: torch.float16, torch.bfloat16: torch.float32}
MOST_TENSORS, WIDEST = 128, 65536
NO_GROUPS, ROWS, INNER = -1, 0, 2
"""Which dimension the groups cut: none, the rows of the product, the dimension that is summed over."""
CUMULATIVE, COUNTS = 0, 1
MOST_CHOICES = 512
QUANTISATION = ("scale", "offset", "antiquant_scale", "antiquant_offset", "per_token_scale")
ACTIVATION = ("activation_input", "activation_scale", "activation_offset")


def grouped_matmul(
    *,
    x: list[Tensor],
    weight: list[Tensor],
    bias: list[Tensor],
    group_list: Tensor | None,
    split_item: int,
    group_type: int,
    group_list_type: int,
    out: list[Tensor],
    **others: Any,
) -> None:
    for name in (*QUANTISATION, *ACTIVATION):
        require(not others[name] or all(t.numel() == 0 for t in others[name]), f"the stand-in has no {name}")
    require(others["activation"] == 0, "the stand-in has no activation")
    require(split_item in (0, 1, 2, 3), f"split_item is 0 to 3, not {split_item}")
    require(group_list_type in (CUMULATIVE, COUNTS), f"group_list_type is 0 or 1, not {group_list_type}")
    for name, tensors in (("x", x), ("weight", weight)):
        require(1 <= len(tensors) <= MOST_TENSORS, f"1 to {MOST_TENSORS} tensors of {name}, not {len(tensors)}")
        for tensor in tensors:
            require(
                tensor.dtype in FLOATS and tensor.dtype == x[0].dtype,
                f"{name}: one dtype of floats, not {tensor.dtype}",
            )
            require(tensor.shape[-1] < WIDEST, f"the last size of {name} is below {WIDEST}, not {tensor.shape[-1]}")
    for tensor in bias:
        require(tensor.dtype == BIAS_DTYPES[x[0].dtype], f"a bias beside {x[0].dtype} is {BIAS_DTYPES[x[0].dtype]}")
    if group_type == NO_GROUPS or group_list is None:
        require(
            group_list is None and len(x) == len(weight) == len(out), "without groups as many x as weight and out"
        )
        for index, (a, b, into) in enumerate(zip(x, weight, out, strict=True)):
            into.copy_(_product(a, b) + (bias[index].float() if bias else 0))
        return
    require(len(x) == 1, f"with groups x is one tensor, not {len(x)}")
    if group_type == ROWS:
        _product_of_rows(x[0], weight, bias, group_list, group_list_type, out)
    else:
        require(group_type == INNER, f"group_type is -1, 0 or 2, not {group_type}")
        require(split_item in (2, 3) and len(weight) == len(out) == 1, "group_type 2 has one weight and one output")
        require(not bias, "group_type 2 takes no bias")
        _product_over_groups(x[0], weight[0], group_list, group_list_type, out[0])


def _product(a: Tensor, b: Tensor) -> Tensor:
    require(a.shape[-1] == b.shape[-2], f"the product of {a.shape} and {b.shape}")
    return a.float() @ b.float()


def _edges(group_list: Tensor, kind: int, groups: int, length: int) -> list[tuple[int, int]]:
    """Start and end of each group."""
    require(
        group_list.dtype == torch.int64 and group_list.dim() == 1, f"group_list is int64 [E], not {group_list.dtype}"
    )
    require(
        group_list.numel() == groups,
        f"group_list has one number for each of {groups} groups, not {group_list.numel()}",
    )
    ends = (group_list.cumsum(0) if kind == COUNTS else group_list).tolist()
    require(all(a <= b for a, b in pairwise([0, *ends])), f"group_list of type {kind} grows from 0: {ends}")
    require(ends[-1] == length, f"the groups end at the last row, {length}, not at {ends[-1]}")
    return list(pairwise([0, *ends]))


def _product_of_rows(
    x: Tensor, weight: list[Tensor], bias: list[Tensor], group_list: Tensor, kind: int, out: list[Tensor]
) -> None:
    matrices = list(weight[0]) if len(weight) == 1 and weight[0].dim() == 3 else weight
    biases = list(bias[0]) if len(bias) == 1 and bias[0].dim() == 2 else bias
    require(x.dim() == 2 and all(m.dim() == 2 for m in matrices), "x is [M, K], weight [E, K, N] or E of [K, N]")
    for group, (start, end) in enumerate(_edges(group_list, kind, len(matrices), x.shape[0])):
        rows = _product(x[start:end], matrices[group]) + (biases[group].float() if biases else 0)
        (out[0][start:end] if len(out) == 1 else out[group]).copy_(rows)


def _product_over_groups(x: Tensor, weight: Tensor, group_list: Tensor, kind: int, out: Tensor) -> None:
    require(x.dim() == weight.dim() == 2, f"x is [K, M] and weight [M, N], not {x.shape} and {weight.shape}")
    require(x.mT.is_contiguous(), "group_type 2 wants x as the transpose of a contiguous tensor")
    require(x.shape[1] == weight.shape[0], f"the product of {x.shape} and {weight.shape}")
    for group, (start, end) in enumerate(_edges(group_list, kind, out.shape[0], x.shape[1])):
        out[group].copy_(_product(x[:, start:end], weight[start:end]))


# --- tokens and rows ------------------------------------------------------------------------------------------------


def _check_rows(tokens: Tensor, padded: bool, choices: int) -> None:
    require(tokens.dtype == torch.bfloat16, f"tokens are bfloat16, not {tokens.dtype}")
    require(tokens.dim() == 2, f"tokens are [T, H], not {tokens.shape}")
    require(not padded, "padded_mode is false")
    require(1 <= choices <= MOST_CHOICES, f"1 to {MOST_CHOICES} experts for a token, not {choices}")


def _rows_of(sorted_indices: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Which choices have a row, and those rows: choices behind the last row were dropped."""
    require(sorted_indices.dtype == torch.int32 and sorted_indices.dim() == 1, "sorted_indices are int32 [T * K]")
    place = sorted_indices.long()
    kept = (place < rows).nonzero().flatten()
    return kept, place[kept]


def permute(
    tokens: Tensor, indices: Tensor, out_tokens: int, padded: bool, permuted: Tensor, sorted_indices: Tensor
) -> None:
    choices = indices.shape[1] if indices.dim() == 2 else 1
    _check_rows(tokens, padded, choices)
    require(indices.dtype in (torch.int32, torch.int64), f"indices are int64 or int32, not {indices.dtype}")
    require(indices.shape[0] == tokens.shape[0], f"indices {indices.shape} choose for every token of {tokens.shape}")
    order = indices.flatten().argsort(stable=True)
    sorted_indices[order] = torch.arange(len(order), dtype=sorted_indices.dtype)
    permuted.copy_(tokens[order[:out_tokens] // choices])


def permute_grad(dpermuted: Tensor, sorted_indices: Tensor, top_k: int, padded: bool, dtokens: Tensor) -> None:
    _check_rows(dpermuted, padded, top_k)
    kept, rows = _rows_of(sorted_indices, dpermuted.shape[0])
    dtokens.copy_(torch.zeros(dtokens.shape).index_add_(0, kept // top_k, dpermuted[rows].float()))


def _weights(probs: Tensor | None, sorted_indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """The weight of every choice, and how many choices a token has."""
    if probs is None:
        return torch.ones(sorted_indices.numel()), 1
    require(probs.dtype == dtype, f"probs are of the dtype of the tokens, {dtype}, not {probs.dtype}")
    require(probs.dim() == 2 and probs.numel() == sorted_indices.numel(), f"probs are [T, K], not {probs.shape}")
    return probs.flatten().float(), probs.shape[1]


def unpermute(
    permuted: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None,
    padded: bool,
    restore_shape: list[int],
    out: Tensor,
) -> None:
    weights, choices = _weights(probs, sorted_indices, permuted.dtype)
    _check_rows(permuted, padded, choices)
    kept, rows = _rows_of(sorted_indices, permuted.shape[0])
    weighted = permuted[rows].float() * weights[kept, None]
    out.copy_(torch.zeros(out.shape).index_add_(0, kept // choices, weighted))


def unpermute_grad(
    permuted: Tensor,
    dy: Tensor,
    sorted_indices: Tensor,
    probs: Tensor | None,
    padded: bool,
    restore_shape: list[int],
    dpermuted: Tensor,
    dprobs: Tensor | None,
) -> None:
    weights, choices = _weights(probs, sorted_indices, permuted.dtype)
    _check_rows(permuted, padded, choices)
    kept, rows = _rows_of(sorted_indices, permuted.shape[0])
    grads = dy[kept // choices].float()
    dpermuted.copy_(torch.zeros(dpermuted.shape).index_copy_(0, rows, grads * weights[kept, None]))
    if probs is not None and dprobs is not None:
        found = torch.zeros(weights.shape).index_copy_(0, kept, (grads * permuted[rows].float()).sum(-1))
        dprobs.copy_(found.view(dprobs.shape))


KERNELS: dict[str, Callable[..., None]] = {
    "aclnnGroupedMatmulV4": grouped_matmul,
    "aclnnGroupedMatmulV5": grouped_matmul,
    "aclnnMoeTokenPermute": permute,
    "aclnnMoeTokenPermuteGrad": permute_grad,
    "aclnnMoeTokenUnpermute": unpermute,
    "aclnnMoeTokenUnpermuteGrad": unpermute_grad,
}
