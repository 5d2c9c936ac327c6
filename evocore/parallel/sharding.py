"""Cuts a model that is still on the meta device down to what one rank holds of it.

Goes by the roles that layers declare, never by their names. Nothing here needs another process: the result depends on
sizes and places alone, so that a launch can be checked, planned and counted on one machine.

Shapes: F outputs, D inputs, V vocabulary of a weight ``[F, D]`` or ``[V, D]``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from evocore.nn.head import Head
from evocore.nn.layers import Embedding, Linear
from evocore.nn.projecting import Projecting
from evocore.nn.roles import Role
from evocore.parallel.placement import Placement, even_range
from evocore.parallel.vocabulary import VocabularyParallelEmbedding, VocabularyParallelHead

COLUMNS = frozenset({Role.QKV, Role.GATE, Role.UP, Role.GATE_UP})
"""Weights whose outputs are divided among the tensor ranks; those of ``ROWS`` read what these have computed."""
ROWS = frozenset({Role.OUT, Role.DOWN})


@dataclass(frozen=True)
class Sharing:
    """How the ranks of a pipeline stage share one parameter.

    Attributes:
        placement: what this rank holds.
        reduce: name of the group over which gradients are added up.
        duplicates: ranks with this same part and this same gradient that are in different groups of that name.
        delivered: whether its gradients come from who gathers the parameter, not from autograd.
        fully_sharded: whether ``evocore.parallel.fsdp`` holds it: gathered for each use, its gradient reduced.
        tied: pipeline stages that hold it, of a weight that a pass uses more than once, as one that is both embedding
            and head, so that its gradients come in several parts; 0 for any other. The ranks
            of two stages are ``duplicates`` as well: their gradients are added up last.
    """

    placement: Placement
    reduce: str
    duplicates: int = 1
    delivered: bool = False
    fully_sharded: bool = False
    tied: int = 0


@dataclass(frozen=True)
class Part:
    """Which of ``parts`` equal parts."""

    index: int
    parts: int


def shard_model(model: nn.Module, mode: str, tensor: Part, weight: Part, context: int = 1) -> dict[str, Sharing]:
    """Resize the parameters and the layers of a model on the meta device, and say who shares what.

    Args:
        mode: ``mtp``, ``msp``, ``fsp`` or ``isp``.
        tensor: this rank's place in its tensor group.
        weight: its place in its weight group, used by ``isp`` alone.
        context: ranks of a tensor group that share the context of attention instead of its heads, likewise.

    Returns:
        One entry per parameter, by its name.
    """
    if mode == "isp":
        _divide_attention(model, tensor.parts // context, context)
        return _flat_shards(model, weight)
    if tensor.parts > 1:
        _divide_layers(model, tensor.parts)
        _divide_vocabulary(model, mode, tensor)
    return _tensor_shards(model, mode, tensor)


def fully_shard_matrices(sharings: Mapping[str, Sharing], zero: Part) -> dict[str, Sharing]:
    """Divide what is left of each matrix once more, by rows, among the ranks of the ZeRO group.

    The rows are dealt as ``torch.chunk`` deals them: equal parts, the last ones shorter or empty. Norms and biases
    are small and stay whole, and so does what ranks other than the data-parallel ones have to add up.
    """
    found = dict(sharings)
    for name, sharing in sharings.items():
        placement = sharing.placement
        if sharing.reduce == "data" and len(placement.local_shape) > 1:
            rows, *rest = placement.local_shape
            start, stop = (min(edge, rows) for edge in even_range(rows, zero.parts, zero.index))
            part = placement.elements(start * math.prod(rest), stop * math.prod(rest))
            found[name] = replace(
                sharing, placement=replace(part, local_shape=(stop - start, *rest)), fully_sharded=True
            )
    return found


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    for prefix, module in model.named_modules():
        for kind, parameter in list(module.named_parameters(recurse=False)):
            yield (f"{prefix}.{kind}" if prefix else kind), module, kind, parameter


def _divide_attention(model: nn.Module, heads: int, context: int) -> None:
    for module in model.modules():
        if hasattr(module, "head_parts"):
            module.head_parts, module.context_parts = heads, context  # type: ignore[assignment]


def _divide_layers(model: nn.Module, parts: int) -> None:
    for module in model.modules():
        for name in module.divided if isinstance(module, Projecting) else ():
            setattr(module, name, max(1, int(getattr(module, name)) // parts))


def _divide_vocabulary(model: nn.Module, mode: str, tensor: Part) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Embedding):
                setattr(parent, name, VocabularyParallelEmbedding.of(child, mode, tensor.parts, tensor.index))
            elif isinstance(child, Head):
                setattr(parent, name, VocabularyParallelHead.of(child, mode, tensor.parts, tensor.index))


def _tensor_shards(model: nn.Module, mode: str, tensor: Part) -> dict[str, Sharing]:
    found = {}
    for name, module, kind, parameter in _parameters(model):
        whole = Placement.whole(parameter.shape)
        placement = _split(module, kind, whole, tensor) if tensor.parts > 1 else None
        if tensor.parts == 1:
            found[name] = Sharing(whole, "data")
        elif placement is not None:
            _resize(module, kind, placement)
            found[name] = Sharing(placement, "data")
        elif mode == "mtp" and getattr(module, "role", None) is not Role.HEAD_NORM:
            # every tensor rank sees all tokens, and so the whole gradient; but not all heads
            found[name] = Sharing(whole, "data", duplicates=tensor.parts)
        else:
            found[name] = Sharing(whole, "stage")
    for module in model.modules():
        if isinstance(module, Linear) and module.role in COLUMNS:
            module.segments = tuple((name, stop - start) for name, start, stop in _own_rows(module, tensor))
    return found


def _split(module: nn.Module, kind: str, whole: Placement, tensor: Part) -> Placement | None:
    """This rank's part of a weight or bias that tensor parallelism divides, else None."""
    role = getattr(module, "role", None)
    if role in COLUMNS and isinstance(module, Linear):
        return whole.rows(_merged((start, stop) for _, start, stop in _own_rows(module, tensor)))
    if role in ROWS and kind == "weight":
        return whole.columns(*_part_of(whole.shape[1], tensor))
    if role in (Role.EMBEDDING, Role.HEAD):
        rows = whole.shape[0]  # already this rank's
        vocabulary = Placement.whole((rows * tensor.parts, *whole.shape[1:]))
        return vocabulary.rows([_part_of(rows * tensor.parts, tensor)])
    return None


def _own_rows(layer: Linear, tensor: Part) -> list[tuple[str, int, int]]:
    """Name, start and stop of the runs of rows that a rank holds: an equal part of the rows of each name."""
    totals: dict[str, int] = {}
    for name, length in layer.segments:
        totals[name] = totals.get(name, 0) + length
    own = {name: _part_of(total, tensor) for name, total in totals.items()}
    seen = dict.fromkeys(totals, 0)
    runs, begin = [], 0
    for name, length in layer.segments:
        first, last = max(own[name][0] - seen[name], 0), min(own[name][1] - seen[name], length)
        if first < last:
            runs.append((name, begin + first, begin + last))
        seen[name] += length
        begin += length
    return runs


def _part_of(total: int, part: Part) -> tuple[int, int]:
    assert total % part.parts == 0, (total, part)  # the config was checked
    length = total // part.parts
    return part.index * length, (part.index + 1) * length


def _merged(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for start, stop in runs:
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def _flat_shards(model: nn.Module, weight: Part) -> dict[str, Sharing]:
    """Each weight as a flat range of its elements; norms and biases are small and stay whole."""
    found = {}
    for name, module, kind, parameter in _parameters(model):
        whole = Placement.whole(parameter.shape)
        if kind == "weight" and isinstance(module, Linear | Embedding):
            placement = whole.elements(*even_range(whole.numel, weight.parts, weight.index))
            _resize(module, kind, placement)
            found[name] = Sharing(placement, "weight_data", delivered=True)
        else:
            found[name] = Sharing(whole, "stage")
    return found


def _resize(module: nn.Module, kind: str, placement: Placement) -> None:
    parameter = getattr(module, kind)
    local = torch.empty(placement.local_shape, dtype=parameter.dtype, device=parameter.device)
    setattr(module, kind, nn.Parameter(local))
