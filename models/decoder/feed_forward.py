"""The gated MLP: ``w2(act(w1 x) * w3 x)``, so w1 is the gate, w3 goes up and w2 down.

Shapes: T tokens, D hidden, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.layers import Linear
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.ops.glu import GeGLURequest, SwiGLURequest
from evocore.ops.kernel import Request


class FeedForward(Projecting):
    """SwiGLU or GeGLU MLP; ``width`` is F, that of the spec if left out."""

    divided: ClassVar[tuple[str, ...]] = ("width",)
    gated: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, spec: DecoderSpec, layer: int, width: int | None = None) -> None:
        super().__init__()
        self.width = spec.feed_forward if width is None else width
        self.dtype, self.fused, self.activation = spec.numerics.dtype, spec.fused_gate_up, spec.activation
        options: dict[str, Any] = dict(dtype=self.dtype, init_std=spec.init.mlp_in, bias=spec.mlp_bias)
        if self.fused:
            halves = [("gate", self.width), ("up", self.width)]
            self.w13 = Linear(spec.hidden, 2 * self.width, role=Role.GATE_UP, segments=halves, **options)
        else:
            self.w1 = Linear(spec.hidden, self.width, role=Role.GATE, **options)
            self.w3 = Linear(spec.hidden, self.width, role=Role.UP, **options)
        self.w2 = Linear(
            self.width,
            spec.hidden,
            role=Role.DOWN,
            dtype=self.dtype,
            init_std=spec.init.residual(spec.init.mlp_out, layer),
            bias=spec.mlp_bias,
        )

    def requests(self) -> dict[str, Request]:
        asked = SwiGLURequest if self.activation == "silu" else GeGLURequest  # which is the tanh form unless told
        return {"gated": asked(self.dtype, self.width)}

    def forward(self, x_TD: Tensor) -> Tensor:
        if self.fused:
            gate_TF, up_TF = self.fan_out(x_TD, [self.w13])[0].chunk(2, dim=1)
        else:
            gate_TF, up_TF = self.fan_out(x_TD, [self.w1, self.w3])
        return self.fan_in(self.gated(gate_TF, up_TF), self.w2)
