"""Parameters in flat buffers, so that many are reduced, updated and gathered by one call.

A bucket's buffers hold its parameters one after another, padded so that they divide evenly among the Z ranks of the
ZeRO group. Each of these ranks owns one part: the master weights and moments there, and in the end the reduced
gradient.

Sizes: n elements of a bucket with padding, Z ranks of the ZeRO group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from weakref import WeakMethod, ref

import torch
from torch import Tensor, nn

from evocore.parallel.groups import Group
from evocore.parallel.placement import Placement
from evocore.parallel.sharding import Sharing

ALIGNMENT = 16
"""Elements to which each parameter's place in a flat buffer is aligned, so that vector loads stay aligned."""


@dataclass(frozen=True, eq=False)
class Member:
    """One parameter and where it starts in the flat buffers."""

    name: str
    parameter: nn.Parameter
    sharing: Sharing
    start: int

    @property
    def stop(self) -> int:
        return self.start + self.parameter.numel()

    def view(self, flat_n: Tensor) -> Tensor:
        """The parameter's place in a flat buffer of the whole bucket, in its shape."""
        return flat_n[self.start : self.stop].view(self.parameter.shape)


class Bucket:
    """Parameters of one dtype whose gradients go the same way.

    Args:
        named: name, parameter and sharing of each, in the order in which their gradients come; they are shared alike.
        zero: the ranks among which the optimizer's state is divided.
        replicas: the ranks that hold the same part of it; both together are the ranks whose gradients add up.

    Attributes:
        values: ``[n]`` in the parameters' dtype; the parameters are views of it.
        gradient: ``[n]`` float32 sum over micro-batches, valid after ``complete``.
        reduced: the owned part of ``gradient``: ``[n / Z]``, the sum over ranks as well after the reduction.
        master, exp_avg, exp_avg_sq: ``[n / Z]`` float32; ``master`` is a view of ``values`` if these are float32.
        copies: ranks that own the same part: of the pipeline stage, and of both that hold a tied weight.
        tied: as ``Sharing.tied``.
    """

    def __init__(
        self,
        named: list[tuple[str, nn.Parameter, Sharing]],
        *,
        zero: Group,
        replicas: Group,
        weight_decay: float,
    ) -> None:
        self.zero, self.replicas, self.weight_decay = zero, replicas, weight_decay
        self.copies, self.tied = named[0][2].duplicates * replicas.size, named[0][2].tied
        self.members: list[Member] = []
        size = 0
        for name, parameter, sharing in named:
            self.members.append(Member(name, parameter, sharing, size))
            size += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        size = -(-size // (zero.size * ALIGNMENT)) * zero.size * ALIGNMENT
        self.own = slice(zero.rank * size // zero.size, (zero.rank + 1) * size // zero.size)
        first = named[0][1]
        self.values = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.gradient = torch.zeros(size, dtype=torch.float32, device=first.device)
        for member in self.members:
            member.view(self.values).copy_(member.parameter.data)
            member.parameter.data = member.view(self.values)
        self._without = dict.fromkeys(self.members)  # a gradient in this step so far
        own = self.values[self.own]
        self.reduced = self.gradient[self.own]
        self.master = own if own.dtype == torch.float32 else own.float()
        self.exp_avg, self.exp_avg_sq = (torch.zeros_like(self.reduced) for _ in range(2))

    def zero_grad(self) -> None:
        """Begin a step: what was added so far counts no more, and is written over by what comes next."""
        self._without = dict.fromkeys(self.members)

    def add(self, member: Member, gradient: Tensor) -> None:
        """Add one micro-batch's gradient of a parameter, whatever its dtype."""
        total, gradient = member.view(self.gradient), gradient.view(member.parameter.shape)
        if member in self._without:
            del self._without[member]
            total.copy_(gradient)
        else:
            total.add_(gradient)

    def complete(self) -> None:
        """Nothing more is added in this step: parameters on which nothing depends have a gradient of zero."""
        for member in self._without:
            member.view(self.gradient).zero_()
        self._without.clear()

    def on_gradient(self, arrived: Callable[[Bucket], None] | None) -> None:
        """Take each gradient when autograd has it, and call ``arrived``, a bound method, after it if that is given.

        Autograd calls the hook of a parameter whose gradient is delivered, too, though it has none for it.
        """
        for number, member in enumerate(self.members):
            if not member.sharing.delivered:
                member.parameter.register_post_accumulate_grad_hook(self._hook(number, arrived))

    def _hook(self, number: int, arrived: Callable[[Bucket], None] | None) -> Callable[[Tensor], None]:
        # Python does not find cycles that lead through autograd: held by its parameters' hooks, a bucket, and with it
        # the groups and their threads, would stay for ever.
        bucket, told = ref(self), WeakMethod(arrived) if arrived is not None else None

        def hook(parameter: Tensor) -> None:
            owner = bucket()
            if owner is None:
                return  # the optimizer is gone, the model is not
            assert parameter.grad is not None
            owner.add(owner.members[number], parameter.grad)
            parameter.grad = None
            if told is not None and (tell := told()) is not None:
                tell(owner)

        return hook

    def own_parts(self) -> Iterator[tuple[Member, Placement, slice]]:
        """Each parameter of which this rank owns elements: their placement, and where they lie in the owned part."""
        for member in self.members:
            start, stop = max(member.start, self.own.start), min(member.stop, self.own.stop)
            if start < stop:
                placement = member.sharing.placement
                if (start, stop) != (member.start, member.stop):
                    placement = placement.elements(start - member.start, stop - member.start)
                yield member, placement, slice(start - self.own.start, stop - self.own.start)
