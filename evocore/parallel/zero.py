"""ZeRO 1.5: the optimizer's state is divided over a part of the data-parallel ranks.

The ranks whose gradients add up are arranged as Z shards times R replicas. A gradient is reduce-scattered over the Z
ranks of a shard group, which sit close together, and what each of them keeps is all-reduced over the R replicas.
After the update the parameters are gathered over the Z ranks only (Rajbhandari et al., 2020, section 5, stage 1;
Zhang et al., 2022, section 3, for the split in two). Both run beside compute if asked to: a bucket's reduction starts
as soon as the last of its gradients is there, and parameters are waited for by the first layer that reads them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evocore.nn.roles import Role
from evocore.ops.collectives import Handle
from evocore.parallel.buckets import Bucket
from evocore.parallel.groups import Group
from evocore.parallel.sharding import Sharing

PIECES = 16
"""Reductions that overlap with backward: so many buckets at least, unless they get smaller than ``SMALLEST``."""
SMALLEST = 2**20
"""Elements of a bucket below which latency, not bandwidth, is what a collective costs."""


@dataclass(frozen=True)
class ZeroOptions:
    """Attributes:
    bucket_elements: the most elements of a bucket; a larger parameter is a bucket of its own.
    overlap_gradients: reduce while backward runs.
    overlap_parameters: gather while the next forward runs.
    communicate: dtype in which gradients travel; None for float32, in which they are added up.
    """

    bucket_elements: int = 2**29
    overlap_gradients: bool = False
    overlap_parameters: bool = False
    communicate: torch.dtype | None = None


@dataclass(frozen=True)
class Shards:
    """How one kind of gradient is reduced: over ``zero`` into parts, these over ``replicas``."""

    zero: Group
    replicas: Group


class Zero:
    """The buckets of a model and what goes on between the ranks that share them.

    Args:
        model: materialised and initialised; its parameters are moved into buckets.
        sharings: of each parameter, by name.
        weight_decays: of each parameter to hold, by name, in the order in which forward uses them.
        shards: of each ``Sharing.reduce`` that occurs.
    """

    def __init__(
        self,
        model: nn.Module,
        sharings: Mapping[str, Sharing],
        weight_decays: Mapping[str, float],
        shards: Mapping[str, Shards],
        options: ZeroOptions,
    ) -> None:
        self._options = options
        parameters = {name: parameter for name, parameter in model.named_parameters() if name in weight_decays}
        self.buckets = _make_buckets(parameters, sharings, weight_decays, shards, options)
        self._members = {member.parameter: (bucket, member) for bucket in self.buckets for member in bucket.members}
        self._alone = all(bucket.zero.size * bucket.replicas.size == 1 for bucket in self.buckets)
        self._missing: dict[Bucket, float] | None = None
        self._counts = False  # whether the gradients that arrive now are the last of their parameters
        self._next = 0  # the bucket whose reduction starts next: the order is the same on all ranks
        self._scattering: list[tuple[Bucket, Tensor, Handle]] = []
        self._reducing: list[tuple[Bucket, Tensor, Handle]] = []
        self._gathering: dict[Bucket, Handle] = {}
        for bucket in self.buckets:
            bucket.on_gradient(self._arrived if options.overlap_gradients and not self._alone else None)
        if options.overlap_parameters and not self._alone:
            self._wait_in_forward(model)

    # --- gradients --------------------------------------------------------------------------------------------------

    def deliver(self, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Add a gradient that does not come by way of autograd."""
        bucket, member = self._members[parameter]
        bucket.add(member, gradient)
        self._arrived(bucket)

    @contextmanager
    def last_gradients(self) -> Iterator[None]:
        """Gradients that arrive inside are the last of their parameters in this step: they may be reduced.

        A pipeline stage with several chunks is here once for each, while others still have some to come.
        """
        if self._options.overlap_gradients and not self._alone and self._missing is None:
            self._missing = {bucket: _last_gradients(bucket) for bucket in self.buckets}
        self._counts = True
        yield
        self._counts = False

    def finish_gradients(self) -> None:
        """Reduce what is not reduced yet, and wait until ``Bucket.reduced`` is valid everywhere."""
        if self._alone:
            for bucket in self.buckets:
                bucket.complete()
            return
        while self._next < len(self.buckets):
            self._start_reduction(self.buckets[self._next])
        self._continue_reductions()
        for bucket, sent, handle in self._reducing:
            handle.wait()
            if sent is not bucket.reduced:
                bucket.reduced.copy_(sent)
        self._reducing.clear()
        self._missing, self._next = None, 0

    def _arrived(self, bucket: Bucket) -> None:
        if self._missing is None or not self._counts:
            return
        self._missing[bucket] -= 1
        while self._next < len(self.buckets) and self._missing[self.buckets[self._next]] == 0:
            self._start_reduction(self.buckets[self._next])

    def _start_reduction(self, bucket: Bucket) -> None:
        self._next += 1
        self._continue_reductions(leave=1)
        bucket.complete()
        gradient = bucket.gradient
        if self._options.communicate not in (None, torch.float32):
            gradient = gradient.to(self._options.communicate)
        if bucket.zero.size == 1:
            self._reducing.append((bucket, gradient, bucket.replicas.all_reduce(gradient, asynchronous=True)))
            return
        part = bucket.reduced if gradient is bucket.gradient else torch.empty_like(gradient[bucket.own])
        handle = bucket.zero.reduce_scatter(part, gradient, asynchronous=True)
        self._scattering.append((bucket, part, handle))

    def _continue_reductions(self, leave: int = 0) -> None:
        """Let the replicas add up what their shard groups have reduced, but for what was sent last."""
        while len(self._scattering) > leave:
            bucket, part, handle = self._scattering.pop(0)
            handle.wait()
            self._reducing.append((bucket, part, bucket.replicas.all_reduce(part, asynchronous=True)))

    # --- parameters -------------------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Bring the parameters on all ranks in line with the master weights."""
        for bucket in reversed(self.buckets):  # in the order of forward
            if bucket.zero.size > 1:
                part = bucket.values[bucket.own]
                if part.dtype != torch.float32:  # otherwise it is the master itself
                    part.copy_(bucket.master)
                self._gathering[bucket] = bucket.zero.all_gather(bucket.values, part, asynchronous=True)
            elif bucket.values.dtype != torch.float32:
                bucket.values.copy_(bucket.master)
        if not self._options.overlap_parameters:
            self.wait_parameters()

    def wait_parameters(self) -> None:
        """Wait until every parameter may be read."""
        for bucket in list(self._gathering):
            self._wait(bucket)

    def wait_parameter(self, parameter: nn.Parameter) -> None:
        """Wait until one parameter may be read."""
        self._wait(self._members[parameter][0])

    def _wait(self, bucket: Bucket) -> None:
        if bucket in self._gathering:
            self._gathering.pop(bucket).wait()

    def _wait_in_forward(self, model: nn.Module) -> None:
        """Each block waits for its own parameters; what else there is is waited for before the first, or by the last.

        The last is that before norm and head: more blocks may come behind these.
        """
        blocks = [child for module in model.children() if isinstance(module, nn.ModuleList) for child in module]
        inside = {parameter for block in blocks for parameter in block.parameters()}
        outside = [parameter for parameter in model.parameters() if parameter not in inside]
        early = {p for module in model.children() for p in module.parameters() if not _comes_last(module)}
        late = {p for module in model.children() for p in module.parameters() if _comes_last(module)} - inside - early
        last = _last_before_head(model)
        model.register_forward_pre_hook(self._waiter([p for p in outside if p not in late or last is None]))
        for block in blocks:
            also = late if block is last else set()
            block.register_forward_pre_hook(self._waiter([*block.parameters(), *also]))

    def _waiter(self, parameters: Sequence[nn.Parameter]) -> Callable[..., None]:
        held = [parameter for parameter in parameters if parameter in self._members]
        buckets = list(dict.fromkeys(self._members[parameter][0] for parameter in held))

        def wait(module: nn.Module, args: Any) -> None:
            for bucket in buckets:
                self._wait(bucket)

        return wait


def _last_gradients(bucket: Bucket) -> float:
    """How many arrive; of tied weights more than one each, in parts of backward that others know."""
    return math.inf if bucket.tied else len(bucket.members)


def _last_before_head(model: nn.Module) -> nn.Module | None:
    """The block behind which norm and head come; None if there is none before them."""
    last = None
    for child in model.children():
        if _comes_last(child):
            break
        if isinstance(child, nn.ModuleList) and len(child):
            *_, last = child  # by position: in a stage their names do not begin with 0
    return last


def _comes_last(module: nn.Module) -> bool:
    return getattr(module, "role", None) in (Role.HEAD, Role.NORM)


def _make_buckets(
    parameters: Mapping[str, nn.Parameter],
    sharings: Mapping[str, Sharing],
    weight_decays: Mapping[str, float],
    shards: Mapping[str, Shards],
    options: ZeroOptions,
) -> list[Bucket]:
    """The buckets in the order in which backward completes them."""
    limit = options.bucket_elements
    alone = all(one.zero.size * one.replicas.size == 1 for one in shards.values())
    if options.overlap_gradients and not alone:
        limit = min(limit, max(SMALLEST, sum(p.numel() for p in parameters.values()) // PIECES))
    filling: dict[tuple[Any, ...], list[str]] = {}
    done: list[list[str]] = []
    for name in reversed(list(weight_decays)):
        parameter, sharing = parameters[name], sharings[name]
        how = sharing.reduce, sharing.duplicates, sharing.delivered, sharing.tied
        kind = (parameter.dtype, weight_decays[name], *how)
        names = filling.setdefault(kind, [])
        if not alone and names and sum(parameters[n].numel() for n in names) + parameter.numel() > limit:
            done.append(filling.pop(kind))
            names = filling.setdefault(kind, [])
        names.append(name)
    order = {name: place for place, name in enumerate(weight_decays)}
    return [
        Bucket(
            [(name, parameters[name], sharings[name]) for name in names],
            zero=shards[sharings[names[0]].reduce].zero,
            replicas=shards[sharings[names[0]].reduce].replicas,
            weight_decay=weight_decays[names[0]],
        )
        for names in sorted([*done, *filling.values()], key=lambda names: -min(order[name] for name in names))
    ]
