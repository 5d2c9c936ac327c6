"""Gradients of fully sharded weights that a schedule computes apart from the rest of backward.

PyTorch's ``fully_shard`` reduces what autograd has left with a gathered weight. What a zero-bubble schedule puts off
comes from no pass of autograd, and when the weight is not gathered any more, as it takes no weight to compute it. So
it is reduced here: for all weights of a block together, beside what is computed next.

Shapes: F rows and D columns of a weight, n elements in the rows that this rank owns; Z ranks, N elements for each of
them, of all weights and with padding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evocore.ops.collectives import Handle
from evocore.parallel.groups import Group


class _Place(NamedTuple):
    unit: str
    name: str


class _Arriving(NamedTuple):
    sizes: dict[str, int]
    own_N: Tensor
    handle: Handle


class DeferredRows:
    """Reduces gradients of whole weights into those of the rows that this rank owns.

    Args:
        zero, replicas: as of ``evocore.parallel.fsdp.FullySharded``.
        communicate: dtype in which gradients travel; they are added up in float32.
        rows: the gradient ``[n]`` of a weight's rows by the weight's name, to be added to.
    """

    def __init__(self, zero: Group, replicas: Group, communicate: torch.dtype, rows: Callable[[str], Tensor]) -> None:
        self._zero, self._replicas, self._communicate, self._rows = zero, replicas, communicate, rows
        self._places: dict[nn.Parameter, _Place] = {}
        self._unit = ""  # of what was delivered last
        self._delivered: dict[str, Tensor] = {}
        self._arriving: _Arriving | None = None
        self._partial: dict[str, None] = {}  # replicas lack what was added to these

    def gathered(self, unit: str, weights: Mapping[str, nn.Parameter]) -> None:
        """Learn what the weights of a unit are called; PyTorch gathers one into the same tensor each time."""
        self._places |= {weight: _Place(unit, name) for name, weight in weights.items()}

    def knows(self, weight: nn.Parameter) -> bool:
        """Whether ``deliver`` takes gradients of it."""
        return weight in self._places

    def deliver(self, weight: nn.Parameter, gradient_FD: Tensor) -> None:
        """Take a micro-batch's gradient of a gathered weight."""
        unit, name = self._places[weight]
        if unit != self._unit:
            self.start()
        assert name not in self._delivered, f"two gradients of {name} at once"
        self._unit, self._delivered[name] = unit, gradient_FD

    def start(self) -> None:
        """Begin to reduce what was delivered; what was begun before is added up first."""
        self._add_up()
        if not self._delivered:
            return
        gradients, self._delivered = self._delivered, {}
        ranks = self._zero.size
        sizes = {name: -(-len(one_FD) // ranks) * one_FD.shape[1] for name, one_FD in gradients.items()}
        first_FD = next(iter(gradients.values()))
        whole_ZN = first_FD.new_empty((ranks, sum(sizes.values())), dtype=self._communicate)
        for one_FD, part in zip(gradients.values(), whole_ZN.split(list(sizes.values()), dim=1), strict=True):
            part.copy_(_by_rank(one_FD, ranks))
        own_N = whole_ZN.new_empty(whole_ZN.shape[1])
        handle = self._zero.reduce_scatter(own_N, whole_ZN.view(-1), asynchronous=True)
        self._arriving = _Arriving(sizes, own_N, handle)

    def finish(self) -> None:
        """Wait until all rows have their gradients, of all replicas."""
        self.start()
        self._add_up()
        if self._replicas.size > 1:
            sums = [sum_n for sum_n in map(self._rows, self._partial) if len(sum_n)]
            sent = [sum_n.to(self._communicate) for sum_n in sums]
            for handle in [self._replicas.all_reduce(one_n, asynchronous=True) for one_n in sent]:
                handle.wait()
            for sum_n, all_n in zip(sums, sent, strict=True):
                if all_n is not sum_n:
                    sum_n.copy_(all_n)
        self._partial = {}

    def _add_up(self) -> None:
        if self._arriving is None:
            return
        (sizes, own_N, handle), self._arriving = self._arriving, None
        handle.wait()
        for name, padded in zip(sizes, own_N.split(list(sizes.values())), strict=True):
            sum_n = self._rows(name)
            sum_n.add_(padded[: len(sum_n)])
        self._partial |= dict.fromkeys(sizes)


def _by_rank(gradient_FD: Tensor, ranks: int) -> Tensor:
    """The rows of each rank as one row of a matrix, the last ones filled up with zeros."""
    missing = -len(gradient_FD) % ranks
    return (F.pad(gradient_FD, (0, 0, 0, missing)) if missing else gradient_FD).reshape(ranks, -1)
