"""What a kernel benchmark times: sizes, inputs, the plain PyTorch expression and the ideal cost.

A case counts what an ideal kernel must do: each input read once, each output written once, each product computed
once; whatever a kernel does beyond that is its loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evocore.ops.kernel import Request


class Shapes(NamedTuple):
    """Sizes of everything; ``document`` is the length of a document, the last one is shorter."""

    tokens: int = 1024
    hidden: int = 512
    ffn: int = 1536
    vocab: int = 4096
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 64
    document: int = 300
    window: int = 128
    experts: int = 8
    top_k: int = 2

    def lengths(self, ragged: bool = False) -> list[int]:
        """Lengths of the documents; ``ragged`` ones are log-normal, ``document`` at most, always the same."""
        lengths: list[int] = []
        draw = torch.Generator().manual_seed(0)
        while sum(lengths) < self.tokens:
            length = self.document
            if ragged:
                length = int((self.document / 4 * torch.randn((), generator=draw).exp()).clamp(1, self.document))
            lengths.append(min(length, self.tokens - sum(lengths)))
        return lengths

    def group_sizes(self) -> list[int]:
        """Rows of each expert: as uneven as a router makes them, ``tokens`` together, always the same."""
        shares = torch.rand(self.experts, generator=torch.Generator().manual_seed(0)) + 0.5
        sizes = (shares / shares.sum() * self.tokens).long().tolist()
        sizes[-1] += self.tokens - sum(sizes)
        return [int(size) for size in sizes]


class Cost(NamedTuple):
    """What one phase must move and compute at least."""

    bytes: float = 0
    flops: float = 0

    def __add__(self, other: Any) -> Cost:
        return Cost(self.bytes + other.bytes, self.flops + other.flops)


@dataclass
class Case:
    """``inputs`` and ``options`` are arguments of the kernel and of ``plain`` alike.

    Inputs that require gradients get them in the backward phase; an op with none has only a forward phase.
    ``checked`` tells whether outputs of one candidate can be compared with those of another.
    """

    request: Request
    inputs: list[Any]
    plain: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    forward: Cost = Cost()
    backward: Cost = Cost()
    checked: bool = True

    @property
    def differentiable(self) -> bool:
        return any(isinstance(value, Tensor) and value.requires_grad for value in self.inputs)

    def cost(self, phase: str) -> Cost:
        """Of "forward", "backward" or "both"."""
        return {"forward": self.forward, "backward": self.backward, "both": self.forward + self.backward}[phase]


class Maker(NamedTuple):
    """Draws random tensors of one dtype on one device."""

    shapes: Shapes
    dtype: torch.dtype
    device: torch.device

    def leaf(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=self.dtype, device=self.device, requires_grad=True)

    def nbytes(self, elements: int) -> int:
        return elements * self.dtype.itemsize
