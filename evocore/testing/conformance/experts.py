"""Cases of ``moe_permute``, ``moe_unpermute`` and ``grouped_linear``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from evocore.ops.grouped_linear import GroupedLinearRequest, Groups
from evocore.ops.moe import (
    MoEPermute,
    MoEPermuteRequest,
    MoEUnpermute,
    MoEUnpermuteRequest,
    Permutation,
    permutation_of,
)
from evocore.testing.conformance.calls import ContractError
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case, Example, Grid, Numbers, Recipe, wide_if, words


def _routing(tokens: int, top_k: int, experts: int, dropped: float) -> Tensor:
    """``[T, K]`` different experts for each token; a share of the choices is dropped, and every third expert idle."""
    numbers = Numbers(9)
    used = torch.tensor([expert for expert in range(experts) if expert % 3 != 1 or experts < 2 * top_k])
    chosen = [used[numbers.order(len(used))[:top_k]] for _ in range(tokens)]
    experts_TK = torch.stack(chosen) if chosen else torch.empty(0, top_k, dtype=torch.int64)
    lost = numbers.below(1000, tokens * top_k).view(tokens, top_k) < 1000 * dropped
    return experts_TK.where(~lost, -1)


def _permute(
    dtype: torch.dtype, tokens: int, width: int, top_k: int, experts: int, dropped: float = 0.0, *, seed: int = 0
) -> Example:
    request = MoEPermuteRequest(dtype, width, top_k, experts)
    x = Numbers(seed)(tokens, width).to(dtype)
    return Example(request, (x,), 1, (_routing(tokens, top_k, experts, dropped),), {"experts": experts})


def _unpermute(
    dtype: torch.dtype,
    tokens: int,
    width: int,
    top_k: int,
    experts: int,
    dropped: float = 0.0,
    fp32_weight: bool = False,
    *,
    seed: int = 0,
) -> Example:
    numbers = Numbers(seed)
    rows, weights = numbers(tokens * top_k, width), numbers(tokens, top_k).abs()
    permutation = permutation_of(_routing(tokens, top_k, experts, dropped), experts)
    inputs = rows.to(dtype), weights.to(wide_if(fp32_weight, dtype))
    request = MoEUnpermuteRequest(dtype, width, top_k, experts)
    return Example(request, inputs, 1, options={"permutation": permutation})


def _grouped(
    dtype: torch.dtype,
    sizes: Sequence[int],
    inputs: int,
    outputs: int,
    nobodys: int = 0,
    known: bool = False,
    *,
    seed: int = 0,
) -> Example:
    """``nobodys`` rows follow those of the groups; ``known`` tells whether the host knows the sizes."""
    numbers, groups = Numbers(seed), Groups.of(sizes)
    x, weight = numbers(sum(sizes) + nobodys, inputs), numbers(len(sizes), outputs, inputs)
    return Example(
        GroupedLinearRequest(dtype, inputs, outputs, len(sizes)),
        (x.to(dtype), weight.to(dtype)),
        1,
        (groups if known else Groups(groups.ends_E),),
    )


def _as_tensors(kernel: MoEPermute) -> Callable[..., tuple[Tensor, ...]]:
    """``moe_permute`` with the permutation as tensors; which of their rows dropped choices have is left open."""

    def moe_permute(x_TD: Tensor, experts_TK: Tensor, *, experts: int) -> tuple[Tensor, ...]:
        rows_RD, permutation = kernel(x_TD, experts_TK, experts=experts)
        row_TK, source_R, ends_E = permutation.row_TK, permutation.source_R, permutation.groups.ends_E
        where = torch.arange(experts_TK.numel(), device=x_TD.device)
        if row_TK.shape != experts_TK.shape or not torch.equal(source_R[row_TK.flatten().long()].long(), where):
            raise ContractError("source_R is not the inverse of row_TK")
        if permutation.groups.host_sizes not in (None, Groups(ends_E).sizes()):
            raise ContractError(f"host_sizes {permutation.groups.host_sizes} do not fit the ends {ends_E.tolist()}")
        return rows_RD, row_TK.where(experts_TK >= 0, -1), source_R.where(where < ends_E[-1], -1), ends_E

    return moe_permute


def _weights_last(kernel: MoEUnpermute) -> Callable[..., Tensor]:
    def moe_unpermute(rows_RD: Tensor, weights_TK: Tensor, *, permutation: Permutation) -> Tensor:
        return kernel(rows_RD, permutation, weights_TK)

    return moe_unpermute


ROUTED: dict[str, dict[str, Any]] = {
    "one-of-3": {"tokens": 7, "width": 8, "top_k": 1, "experts": 3},
    "two-of-5": {"tokens": 5, "width": 12, "top_k": 2, "experts": 5},
    "two-of-2-odd-width": {"tokens": 3, "width": 37, "top_k": 2, "experts": 2},
    "one-of-1": {"tokens": 2, "width": 4, "top_k": 1, "experts": 1},
    "one-of-4-dropped": {"tokens": 9, "width": 5, "top_k": 1, "experts": 4, "dropped": 0.4},
    "two-of-8-dropped": {"tokens": 9, "width": 16, "top_k": 2, "experts": 8, "dropped": 0.3},
    "all-dropped": {"tokens": 3, "width": 8, "top_k": 2, "experts": 4, "dropped": 1.0},
    "empty": {"tokens": 0, "width": 8, "top_k": 2, "experts": 4},
}
ROUTED_LARGE: dict[str, dict[str, Any]] = {
    "two-of-8-wide": {"tokens": 300, "width": 4096, "top_k": 2, "experts": 8, "dropped": 0.1},
    "six-of-64": {"tokens": 513, "width": 1000, "top_k": 6, "experts": 64},
}
GROUPED: dict[str, dict[str, Any]] = {
    "one-group": {"sizes": [5], "inputs": 8, "outputs": 16},
    "several": {"sizes": [3, 5, 1], "inputs": 16, "outputs": 8},
    "empty-groups": {"sizes": [0, 4, 0, 0, 3, 0], "inputs": 8, "outputs": 8},
    "rows-of-nobody": {"sizes": [2, 0, 5], "inputs": 8, "outputs": 16, "nobodys": 3},
    "odd-widths": {"sizes": [4, 2], "inputs": 7, "outputs": 5, "nobodys": 1},
    "more-than-a-tile": {"sizes": [1, 19], "inputs": 24, "outputs": 20, "nobodys": 2},
    "only-nobodys": {"sizes": [0, 0], "inputs": 8, "outputs": 8, "nobodys": 3},
}
GROUPED_LARGE: dict[str, dict[str, Any]] = {
    "8-experts": {"sizes": [100, 0, 257, 1, 64, 30, 130, 5], "inputs": 512, "outputs": 384, "nobodys": 37},
    "2-experts": {"sizes": [300, 213], "inputs": 1024, "outputs": 136},
}


def _routed_cases(op: str, recipe: Callable[..., Example], *flags: str) -> tuple[Case, ...]:
    return tuple(
        Case(
            op,
            words(label, *more),
            partial(recipe, **sizes, **dict.fromkeys(more, True)),
            "large" if label in ROUTED_LARGE else "small",
            mixed=bool(more),
            empty=label == "empty",
        )
        for label, sizes in (ROUTED | ROUTED_LARGE).items()
        for more in dict.fromkeys(((), flags))
    )


def _grouped_cases() -> tuple[Case, ...]:
    op = "grouped_linear"
    return (
        *(
            Case(op, label, partial(_grouped, **sizes), representative="nobodys" in sizes)
            for label, sizes in GROUPED.items()
        ),
        Case(op, "sizes-known", partial(_grouped, **GROUPED["rows-of-nobody"], known=True)),
        Case(op, "empty", partial(_grouped, sizes=[0, 0, 0], inputs=8, outputs=8), empty=True),
        *(Case(op, label, partial(_grouped, **sizes), "large") for label, sizes in GROUPED_LARGE.items()),
    )


def _draw_routed(choices: Choices) -> dict[str, Any]:
    top_k = choices.integer(1, 3)
    return {
        "tokens": choices.integer(0, 8),
        "width": choices.integer(1, 40),
        "top_k": top_k,
        "experts": top_k + choices.integer(0, 5),
        "dropped": choices.one_of((0.0, 0.3)),
        "seed": choices.integer(0, 999),
    }


def _draw_permute(choices: Choices) -> Recipe:
    return partial(_permute, **_draw_routed(choices))


def _draw_unpermute(choices: Choices) -> Recipe:
    return partial(_unpermute, **_draw_routed(choices), fp32_weight=choices.flag())


def _draw_grouped(choices: Choices) -> Recipe:
    return partial(
        _grouped,
        sizes=[choices.integer(0, 6) for _ in range(choices.integer(1, 4))],
        inputs=choices.integer(1, 24),
        outputs=choices.integer(1, 24),
        nobodys=choices.integer(0, 2),
        known=choices.flag(),
        seed=choices.integer(0, 999),
    )


GRIDS = {
    "moe_permute": Grid(_routed_cases("moe_permute", _permute), _draw_permute, _as_tensors),
    "moe_unpermute": Grid(_routed_cases("moe_unpermute", _unpermute, "fp32_weight"), _draw_unpermute, _weights_last),
    "grouped_linear": Grid(_grouped_cases(), _draw_grouped),
}
