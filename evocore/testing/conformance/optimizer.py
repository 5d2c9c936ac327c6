"""Cases of ``adamw``, which works in place: four steps on copies, seen as one function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from evocore.ops.adamw import AdamW, AdamWRequest
from evocore.testing.conformance.choices import Choices
from evocore.testing.conformance.example import Case, Example, Grid, Numbers, Recipe

STEPS = 4


def _adamw(
    dtype: torch.dtype, shapes: Sequence[tuple[int, ...]], *, weight_decay: float = 0.1, seed: int = 0
) -> Example:
    numbers = Numbers(seed)
    params, *gradients = ([numbers(*shape).to(dtype) for shape in shapes] for _ in range(1 + STEPS))
    return Example(AdamWRequest(dtype), (), constants=(params, gradients), options={"weight_decay": weight_decay})


def _on_copies(kernel: AdamW) -> Callable[..., tuple[Tensor, ...]]:
    """Parameters and both moments after all steps, with changing rates."""

    def adamw(params: list[Tensor], gradients: list[list[Tensor]], *, weight_decay: float) -> tuple[Tensor, ...]:
        params = [x.clone() for x in params]
        exp_avgs, exp_avg_sqs = ([torch.zeros_like(x) for x in params] for _ in range(2))
        for step, grads in enumerate(gradients, 1):
            kernel(
                params,
                grads,
                exp_avgs,
                exp_avg_sqs,
                step=step,
                lr=0.1 / step,
                beta1=0.9,
                beta2=0.95,
                eps=1e-8,
                weight_decay=weight_decay,
            )
        return *params, *exp_avgs, *exp_avg_sqs

    return adamw


def _cases() -> tuple[Case, ...]:
    shapes = [(7,), (3, 5), (2, 3, 4), (0, 4), ()]
    return (
        Case("adamw", "shapes", partial(_adamw, shapes=shapes)),
        Case("adamw", "no-decay", partial(_adamw, shapes=shapes[:2], weight_decay=0.0)),
        Case("adamw", "no-tensors", partial(_adamw, shapes=[])),
        Case("adamw", "empty", partial(_adamw, shapes=[(0,), (3, 0)]), empty=True),
        Case("adamw", "many", partial(_adamw, shapes=[(4096, 300), *[(1023,)] * 200, (5, 1 << 16)]), "large"),
    )


def _draw(choices: Choices) -> Recipe:
    shapes = [
        tuple(choices.integer(0, 9) for _ in range(choices.integer(0, 3))) for _ in range(choices.integer(0, 4))
    ]
    decay = choices.one_of((0.0, 0.1))
    return partial(_adamw, shapes=shapes, weight_decay=decay, seed=choices.integer(0, 999))


GRIDS = {"adamw": Grid(_cases(), _draw, _on_copies)}
