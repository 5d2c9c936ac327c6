"""Which whole weights are there at this moment of a step: starts, hands out and drops them as the plan says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from evocore.parallel.groups import Group
from evocore.parallel.isp.gathering import Buffers, Gathering, Shapes
from evocore.parallel.isp.plan import Call, Unit
from evocore.parallel.isp.reduction import Reduction
from evocore.parallel.pipeline.deferral import WeightGradients, Work


class Schedule:
    """The state of weight parallelism between two moments of a step.

    Args:
        shapes: of the whole weights.
        before_read: called with each shard before it is sent.
        overlap: backward starts to gather before it computes; if not, it gathers when it needs.
        fused: see ``Gathering``.
        gradients: may put off those of linear layers.
    """

    def __init__(
        self,
        group: Group,
        shapes: Shapes,
        reduction: Reduction,
        buffers: Buffers,
        before_read: Callable[[nn.Parameter], None],
        *,
        overlap: bool,
        fused: bool,
        gradients: WeightGradients | None = None,
    ) -> None:
        self.shapes, self.reduction = shapes, reduction
        self._gradients = gradients
        self._group, self._buffers, self._before_read = group, buffers, before_read
        self._overlap, self._fused = overlap, fused
        self._gatherings: dict[Unit, Gathering] = {}
        self._at_attention: Unit | None = None

    # --- forward ----------------------------------------------------------------------------------------------------

    def begin_forward(self) -> None:
        """Forget what a forward pass that was not completed has left; its weights may be out of date.

        Raises:
            RuntimeError: if gradients of the backward pass before are still under way.
        """
        if _in_backward():
            return
        if not self.reduction.finished:
            raise RuntimeError("a forward pass begins before WeightParallel.finish() was called after backward")
        self._discard()

    @contextmanager
    def forward(self, call: Call) -> Iterator[list[Tensor]]:
        """The whole weights of a call, to be computed with inside the context.

        In a recomputation they stay for the backward of the same call, which comes next.
        """
        recomputing = _in_backward()
        gathering = self._start(call.unit)
        self._start_ahead(call.recomputation if recomputing else call.forward)
        if not recomputing and call.attention is not None:
            self._at_attention = call.attention
        try:
            yield [gathering.whole(layer) for layer in call.layers]
        finally:
            if not recomputing:
                self._release(call)

    def forward_kept(self, call: Call) -> Tensor:
        """The whole weight of a call with one layer, for somebody who keeps it as long as it is needed."""
        gathering = self._start(call.unit)
        self._start_ahead(call.forward)
        weight = gathering.whole(call.layers[0])
        self._release(call, reuse=False)
        return weight

    def at_attention(self) -> None:
        """Attention is about to be called."""
        unit, self._at_attention = self._at_attention, None
        self._start_ahead(unit)

    # --- backward ---------------------------------------------------------------------------------------------------

    def begin_backward(self, call: Call, *, needs_weights: bool) -> None:
        """Start what backward of a call needs first and what comes after it."""
        if needs_weights and self._overlap:
            self._start(call.unit)
        self._start_ahead(call.backward)

    @contextmanager
    def backward(self, call: Call) -> Iterator[list[Tensor]]:
        """The whole weights of a call, to be computed with inside the context."""
        gathering = self._start(call.unit)
        try:
            yield [gathering.whole(layer) for layer in call.layers]
        finally:
            self._release(call)

    def do(self, work: Work) -> None:
        """Compute gradients of weights and start their reduction, now or when there is time for them."""
        if self._gradients is None:
            work()
        else:
            self._gradients.do(work)

    def finish(self) -> None:
        """End a backward pass."""
        self.reduction.finish()
        self._discard()

    # --- gathered units ---------------------------------------------------------------------------------------------

    def _start(self, unit: Unit) -> Gathering:
        if unit not in self._gatherings:
            for layer in unit.layers:
                self._before_read(layer.weight)
            self._gatherings[unit] = Gathering(unit, self.shapes, self._group, self._buffers, fused=self._fused)
        return self._gatherings[unit]

    def _start_ahead(self, unit: Unit | None) -> None:
        if unit is not None:
            self._start(unit)

    def _release(self, call: Call, *, reuse: bool = True) -> None:
        gathering = self._gatherings[call.unit]
        for layer in call.layers:
            gathering.release(layer, reuse=reuse)
        if gathering.released:
            del self._gatherings[call.unit]

    def _discard(self) -> None:
        self._at_attention = None
        while self._gatherings:
            self._gatherings.popitem()[1].discard()


def _in_backward() -> bool:
    """Whether this thread runs backward, where a forward can only be a recomputation."""
    return torch._C._current_graph_task_id() != -1  # how torch.utils.checkpoint tells one backward from another
