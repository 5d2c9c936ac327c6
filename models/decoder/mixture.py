"""A mixture of experts in the place of the MLP: routed experts, and shared ones that every token visits.

Shapes: T tokens, D hidden.
"""

from __future__ import annotations

from torch import Tensor, nn

from evocore.models.decoder.feed_forward import FeedForward
from evocore.models.decoder.mixture_spec import MixtureSpec
from evocore.models.decoder.spec import DecoderSpec
from evocore.nn.experts import RoutedExperts
from evocore.nn.router import Router, Scorer


class MixtureOfExperts(nn.Module):
    """``sum of weight * expert(x) over the experts of the token, + shared(x)``.

    Attributes:
        gate: the router.
        shared: the shared experts as one MLP of their total width; None without.
        shared_gate: its output is scaled by a sigmoid of this (Qwen2-MoE); None for a factor of one.
    """

    def __init__(self, spec: DecoderSpec, mixture: MixtureSpec, layer: int) -> None:
        super().__init__()
        rule = mixture.rule
        self.gate = Router(spec.hidden, rule, layer=layer, init_std=spec.init.mlp_in)
        self.experts = RoutedExperts(
            rule.experts,
            rule.top_k,
            spec.hidden,
            mixture.width,
            dtype=spec.numerics.dtype,
            init_std=(spec.init.mlp_in, spec.init.residual(spec.init.mlp_out, layer)),
        )
        self.shared = FeedForward(spec, layer, mixture.shared_width) if mixture.shared_width else None
        self.shared_gate = Scorer(spec.hidden, 1, init_std=spec.init.mlp_in) if mixture.shared_gate else None

    @property
    def last(self) -> FeedForward | None:
        """The MLP whose result is all that comes after the last activation that backward needs."""
        return self.shared if self.shared_gate is None else None

    def forward(self, x_TD: Tensor) -> Tensor:
        y_TD: Tensor = self.experts(x_TD, *self.gate(x_TD))
        if self.shared is None:
            return y_TD
        shared_TD: Tensor = self.shared(x_TD)
        if self.shared_gate is not None:
            shared_TD = shared_TD * self.shared_gate(x_TD).sigmoid().to(shared_TD.dtype)
        return y_TD + shared_TD
