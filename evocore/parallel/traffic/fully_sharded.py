"""Traffic of fully sharded data parallelism, which PyTorch sends, not ``Collectives``; see ``evocore.parallel.fsdp``.

Rows are dealt so that each rank but the last ones has the same, and all send as many: there is padding.

Sizes: W ranks of the ZeRO group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from evocore.nn.layers import Embedding
from evocore.parallel.blocks import units_by_part
from evocore.parallel.layout import Layout
from evocore.parallel.pipeline.schedules import Table
from evocore.parallel.sharding import Sharing
from evocore.parallel.traffic.ledger import Ledger


@dataclass(frozen=True)
class Matrix:
    """Of what is sharded, what one rank has.

    Attributes:
        elements: of its rows, padding included.
        used: of its rows.
        whole: of all rows.
        deferred: whether a schedule computes its gradients apart from the rest of backward.
    """

    elements: int
    used: int
    whole: int
    deferred: bool


@dataclass(frozen=True)
class Unit:
    """Matrices that are gathered together: of the embedding, of a block, of the head.

    Attributes:
        matrices: at least one.
        dtype: in which the model computes with them.
        embeds: whether it is an embedding, whose gradient does not depend on it.
        part: which of the rank's chunks of the model it is in, counted from 0.
    """

    matrices: tuple[Matrix, ...]
    dtype: torch.dtype
    embeds: bool
    part: int

    @property
    def elements(self) -> int:
        """Of a rank's rows, padding included."""
        return sum(matrix.elements for matrix in self.matrices)


def gathered_units(model: nn.Module, layout: Layout, sharings: Mapping[str, Sharing]) -> list[Unit]:
    """What is gathered at once, in the order of forward; nothing if nothing is fully sharded.

    Args:
        model: with the matrices of the whole ZeRO group.
        sharings: of its parameters, by name.
    """
    sharded = {
        parameter: sharings[name] for name, parameter in model.named_parameters() if sharings[name].fully_sharded
    }
    ranks, found = layout.part("zero").parts, []
    for part, units in enumerate(units_by_part(model, layout.chunk_starts())):
        for module in units:
            own = {parameter: sharded[parameter] for parameter in module.parameters() if parameter in sharded}
            if own:
                matrices = tuple(_matrix(parameter, sharing, ranks) for parameter, sharing in own.items())
                dtype = next(iter(own)).dtype
                found.append(Unit(matrices, dtype, isinstance(module, Embedding), part))
    return found


def _matrix(parameter: nn.Parameter, sharing: Sharing, ranks: int) -> Matrix:
    rows, *rest = parameter.shape
    elements = -(-rows // ranks) * math.prod(rest)
    return Matrix(elements, sharing.placement.numel, parameter.numel(), sharing.delivered)


def fully_sharded(
    ledger: Ledger, units: Sequence[Unit], layout: Layout, micro_batches: int, communicate: torch.dtype
) -> None:
    """Of a step with M micro-batches.

    Args:
        units: as ``gathered_units`` finds them.
        communicate: dtype in which gradients travel.
    """
    if not units:
        return
    ranks, stage = layout.part("zero").parts, layout.part("pipeline").index
    chunks = layout.schedule.chunks_of(stage)
    table = layout.schedule.tables(micro_batches)[stage]
    for unit in units:
        size = ranks * unit.elements * unit.dtype.itemsize
        forward, backward = micro_batches, 0 if unit.embeds else micro_batches
        if unit is units[-1]:
            forward, backward = _gathered_when_gone(table, chunks[unit.part])
        ledger.add("zero", "all_gather", "matrices for forward", size, forward)
        ledger.add("zero", "all_gather", "matrices for backward", size, backward)
    for unit in units:
        at_once = sum(matrix.elements for matrix in unit.matrices if not matrix.deferred) * communicate.itemsize
        ledger.add("zero", "reduce_scatter", "gradients of matrices", ranks * at_once, micro_batches)
        # Sums over micro-batches would be in the dtype in which they travel: if it is short, each goes by itself.
        times = 1 if communicate == torch.float32 else micro_batches
        ledger.add("zero_replica", "all_reduce", "gradients of matrices of the replicas", at_once, times)
    _deferred(ledger, units, ranks, micro_batches, communicate)


def _gathered_when_gone(table: Table, chunk: int) -> tuple[int, int]:
    """How often forward and backward gather what stays from a forward to the next backward of its chunk."""
    there, counts = False, {"F": 0, "B": 0, "I": 0}
    for action in table:
        if action.chunk == chunk and action.kind != "W":
            counts[action.kind] += not there
            there = action.kind == "F"
    return counts["F"], counts["B"] + counts["I"]


def _deferred(
    ledger: Ledger, units: Sequence[Unit], ranks: int, micro_batches: int, communicate: torch.dtype
) -> None:
    """Of each unit and micro-batch together; to the replicas the sums over micro-batches, matrix by matrix."""
    for unit in units:
        matrices = [matrix for matrix in unit.matrices if matrix.deferred]
        size = ranks * sum(matrix.elements for matrix in matrices) * communicate.itemsize
        ledger.add("zero", "reduce_scatter", "gradients of matrices that were put off", size, micro_batches)
        for matrix in matrices:
            size = matrix.used * communicate.itemsize
            ledger.add("zero_replica", "all_reduce", "gradients of matrices of the replicas", size)
