"""Contract of ``grouped_linear``: one matrix product per expert, over as many rows as it was sent.

Shapes: R rows, D width of the input, F width of the output, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from evocore.ops.kernel import Request


@dataclass(frozen=True, eq=False)
class Groups:
    """How rows sorted by expert are cut into groups.

    The ends are on the device because routing decides them there: a kernel that works from them never stalls it.

    Attributes:
        ends_E: int32 on the device; group e is the rows from the end before it (0 for the first) to its own. Never
            decreasing; an empty group is legal, and so are rows beyond the last end: they belong to nobody.
        host_sizes: rows of each group if the host knows them, as it does once uneven exchanges have been agreed on.
    """

    ends_E: Tensor
    host_sizes: tuple[int, ...] | None = None

    @classmethod
    def of(cls, sizes: Sequence[int], device: torch.device | str = "cpu") -> Groups:
        """Both forms from host numbers."""
        return cls(torch.tensor(list(accumulate(sizes)), dtype=torch.int32, device=device), tuple(sizes))

    def sizes(self) -> tuple[int, ...]:
        """Rows of each group; waits for the device if only it knows."""
        if self.host_sizes is None:
            ends = self.ends_E.tolist()
            return tuple(end - start for start, end in pairwise([0, *ends]))
        return self.host_sizes


class GroupedLinear(Protocol):
    """``y[rows of e] = x[rows of e] @ weight[e].T`` (Gale et al., 2022).

    Args:
        x_RD: rows sorted by group, any strides; not modified.
        weight_EFD: one weight per expert.
        groups: E groups that hold R rows at most.

    Returns:
        ``[R, F]`` in the dtype of ``x_RD``, accumulated in float32 at least; rows of nobody are 0, and so are their
        gradients. Differentiable in ``x_RD`` and ``weight_EFD``; the weight of an empty group has a gradient of 0.
    """

    def __call__(self, x_RD: Tensor, weight_EFD: Tensor, groups: Groups) -> Tensor: ...


@dataclass(frozen=True)
class GroupedLinearRequest(Request):
    """``inputs`` is D, ``outputs`` is F, ``experts`` is E."""

    inputs: int
    outputs: int
    experts: int

    @property
    def op(self) -> str:
        return "grouped_linear"
