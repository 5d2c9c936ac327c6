"""The layers with weights: linear, embedding and RMSNorm, each with its role and its initialisation.

Shapes: T tokens, D width of the input, F width of the output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evocore.nn.binding import UsesOps
from evocore.nn.roles import Role
from evocore.ops.kernel import Request
from evocore.ops.rms_norm import AddRMSNormRequest, RMSNormRequest


class Linear(nn.Module):
    """``y = x @ weight.T + bias`` with ``weight`` of shape ``[F, D]``.

    Args:
        role: what the weight is for.
        init_std: standard deviation of the initial weights; the bias starts at zero.
        segments: names and lengths of the runs of rows that the weight is made of, where it is several projections in
            one: rows of one name belong together in their order. None for a single projection.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        role: Role,
        dtype: torch.dtype,
        init_std: float,
        bias: bool = False,
        segments: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        super().__init__()
        self.role, self.init_std = role, init_std
        self.segments = tuple(segments or [(role.value, outputs)])
        assert sum(rows for _, rows in self.segments) == outputs, (self.segments, outputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=dtype)) if bias else None

    def forward(self, x_TD: Tensor) -> Tensor:
        return F.linear(x_TD, self.weight, self.bias)


class Embedding(nn.Module):
    """Rows of ``weight [V, D]`` by token id."""

    def __init__(self, vocab: int, width: int, *, dtype: torch.dtype, init_std: float) -> None:
        super().__init__()
        self.role, self.init_std = Role.EMBEDDING, init_std
        self.weight = nn.Parameter(torch.empty(vocab, width, dtype=dtype))

    def forward(self, tokens_T: Tensor) -> Tensor:
        return F.embedding(tokens_T, self.weight)


class _Scaled(UsesOps):
    """What the norms share: one weight of their width, and what is asked of their kernels.

    Args:
        role: ``NORM``, or ``HEAD_NORM`` where a rank of a tensor group normalises its own heads only.
        dtype: of the activations; the weight has ``weight_dtype``, float32 if norms are kept in float32.
    """

    rms_norm: Callable[..., Tensor]

    def __init__(
        self,
        width: int,
        *,
        role: Role = Role.NORM,
        eps: float,
        dtype: torch.dtype,
        weight_dtype: torch.dtype,
        unit_offset: bool = False,
    ) -> None:
        super().__init__()
        self.role, self.eps, self.dtype, self.unit_offset = role, eps, dtype, unit_offset
        self.weight = nn.Parameter(torch.empty(width, dtype=weight_dtype))

    def requests(self) -> dict[str, Request]:
        return {"rms_norm": RMSNormRequest(self.dtype, self.weight.shape[0], self.unit_offset)}


class Norm(_Scaled):
    """RMSNorm by itself, of whatever rows ``[..., D]`` it is given."""

    def forward(self, x: Tensor) -> Tensor:
        y_TD = self.rms_norm(x.flatten(0, -2), self.weight, eps=self.eps, unit_offset=self.unit_offset)
        return y_TD.view(x.shape)


class RMSNorm(_Scaled):
    """RMSNorm that also adds what the last block computed to the residual stream, which has ``residual_dtype``."""

    add_rms_norm: Callable[..., tuple[Tensor, Tensor]]

    def __init__(
        self,
        width: int,
        *,
        eps: float,
        dtype: torch.dtype,
        weight_dtype: torch.dtype,
        residual_dtype: torch.dtype,
        unit_offset: bool = False,
    ) -> None:
        super().__init__(width, eps=eps, dtype=dtype, weight_dtype=weight_dtype, unit_offset=unit_offset)
        self.residual_dtype = residual_dtype

    def requests(self) -> dict[str, Request]:
        wide = self.residual_dtype == torch.float32 != self.dtype
        summed = AddRMSNormRequest(self.dtype, self.weight.shape[0], self.unit_offset, residual_in_fp32=wide)
        return super().requests() | {"add_rms_norm": summed}

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the normalised sum and the new residual stream; without one, x starts it."""
        if residual_TD is None:
            normed = self.rms_norm(x_TD, self.weight, eps=self.eps, unit_offset=self.unit_offset)
            return normed, x_TD.to(self.residual_dtype)
        return self.add_rms_norm(x_TD, residual_TD, self.weight, eps=self.eps, unit_offset=self.unit_offset)
