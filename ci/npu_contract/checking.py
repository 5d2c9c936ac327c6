"""What the checks of the stand-in share: values and gradients against formulas, refusals, inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NPU = torch.device("npu", 0)


def agree(
    on_npu: Callable[..., Tensor | Sequence[Tensor]],
    formula: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Sequence[Tensor],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Outputs and gradients of all floating inputs, for a gradient that differs by element."""

    def evaluate(function: Callable[..., Tensor | Sequence[Tensor]], given: list[Tensor]) -> list[Tensor]:
        outputs = function(*given)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        leaves = [x for x in given if x.requires_grad]
        upstream = [torch.linspace(-1, 1, y.numel()).view_as(y).to(y) for y in outputs]
        grads = torch.autograd.grad(outputs, leaves, upstream) if leaves else ()
        return [y.detach().cpu().double() for y in (*outputs, *grads)]

    rounded = [x.to(dtype) if x.is_floating_point() else x for x in inputs]
    wide = [x.double().requires_grad_() if x.is_floating_point() else x for x in rounded]
    narrow = [x.to(NPU).requires_grad_(x.is_floating_point()) for x in rounded]
    tolerance = 2e-5 if dtype == torch.float32 else 3e-2
    for found, expected in zip(evaluate(on_npu, narrow), evaluate(formula, wide), strict=True):
        torch.testing.assert_close(
            found, expected, rtol=tolerance, atol=tolerance * max(1.0, expected.abs().max().item())
        )


def refuses(text: str, call: Callable[[], object]) -> None:
    try:
        call()
    except (RuntimeError, ValueError) as error:
        assert text in str(error), f"expected {text!r} in: {error}"
        return
    raise AssertionError(f"nothing was refused; expected: {text}")


def randn(*sizes: int) -> Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(sum(sizes)))
