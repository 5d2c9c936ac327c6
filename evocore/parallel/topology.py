"""Which ranks form which group: arithmetic on rank numbers, for runs, tests and plans of any size.

A rank is a number with mixed digits. There are three ways to write it, one for each thing that is divided: the work
on activations, the weights, the experts. Each is a list of axes, the fastest first, whose sizes multiply to all
ranks; the slowest axis of each is the pipeline, so that a stage is a block of ranks. A group is what remains when
some axes run and the others stand still, so that one table of axes says everything. The layouts are InternEvo's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from evocore.parallel.sizes import Sizes

__all__ = ["Sizes", "Topology"]


@dataclass(frozen=True)
class _Axis:
    size: int
    stride: int


@dataclass(frozen=True)
class _Row:
    """The axes that run in a group, and what the group is for.

    ``channel`` separates groups that exchange at the same time over the same ranks: theirs are not shared.
    """

    layout: str
    axes: tuple[str, ...]
    purpose: str
    channel: str = ""


_HEAD = ("kv", "heads")
_CONTEXT = ("parity", "window", "windows")
_TENSOR = (*_HEAD, *_CONTEXT)

_TABLE = {
    "world": _Row("work", (*_TENSOR, "data", "pipeline"), "all ranks"),
    "stage": _Row("work", (*_TENSOR, "data"), "one pipeline stage: the same layers"),
    "pipeline": _Row("work", ("pipeline",), "one chain of stages: what is passed to higher stages"),
    "pipeline_down": _Row("work", ("pipeline",), "one chain of stages: what is passed to lower stages", "down"),
    "model": _Row("work", (*_TENSOR, "pipeline"), "one copy of the model at work: the same samples"),
    "tensor": _Row("work", _TENSOR, "one layer (mtp, msp, fsp) or one sequence (isp) is shared"),
    "sequence": _Row("work", _TENSOR, "one sequence is shared: the ranks of tensor"),
    "data": _Row("work", ("data",), "the same part of different samples"),
    "head": _Row("work", _HEAD, "the heads of attention are shared"),
    "kv": _Row("work", ("kv",), "the same key-value head, of which there are fewer than ranks"),
    "context": _Row("work", _CONTEXT, "the context of attention is shared: a ring, or rings in a ring"),
    "intra_window": _Row("work", ("window",), "inner ring: keys and values"),
    "inter_window": _Row("work", ("parity", "windows"), "outer ring: keys and values"),
    "dkv_intra_window": _Row("work", ("window",), "inner ring: gradients of keys and values", "dkv"),
    "dkv_inter_window": _Row("work", ("parity", "windows"), "outer ring: gradients of keys and values", "dkv"),
    "weight": _Row("weights", ("weight",), "every weight is sharded (isp); alone in the other modes"),
    "weight_data": _Row("weights", ("zero", "zero_replica"), "the same weights: their gradients are summed"),
    "zero": _Row("weights", ("zero",), "one copy of the optimizer state is sharded"),
    "zero_replica": _Row(
        "weights", ("zero_replica",), "the same weights and the same shard of their optimizer state"
    ),
    "stage_replica": _Row(
        "weights",
        ("split", "weight", "zero_replica"),
        "the same shard of what every rank of a stage has whole, such as norms",
    ),
    "expert": _Row("experts", ("expert",), "the experts are shared: tokens go to them and back"),
    "expert_tensor": _Row("experts", ("expert_tensor",), "one expert is shared; alone in isp"),
    "expert_weight": _Row("experts", ("expert_weight",), "experts' weights are sharded (isp); alone in other modes"),
    "expert_data": _Row(
        "experts", ("expert_zero", "expert_zero_replica"), "the same experts' weights: their gradients are summed"
    ),
    "expert_zero": _Row("experts", ("expert_zero",), "one copy of the experts' optimizer state is sharded"),
    "expert_zero_replica": _Row(
        "experts", ("expert_zero_replica",), "the same shard of the experts' optimizer state"
    ),
}


class Topology:
    """All groups of a run.

    Args:
        sizes: how many ranks share what.

    Raises:
        KeyError: by every method for a name that is not in ``names()``.
        ValueError: by every method for a rank that is not in the world.
    """

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self._axes = {layout: _strides(axes) for layout, axes in _layouts(sizes).items()}

    def names(self) -> tuple[str, ...]:
        """Of all groups."""
        return tuple(_TABLE)

    def purpose(self, name: str) -> str:
        """What the ranks of one such group have in common or do together, in a few words."""
        return _TABLE[name].purpose

    def channel(self, name: str) -> str:
        """Groups of the same ranks and the same channel may share one communicator."""
        return _TABLE[name].channel

    def size(self, name: str) -> int:
        """Ranks in each group of this name."""
        size = 1
        for axis in self._running(name):
            size *= axis.size
        return size

    def groups(self, name: str) -> list[tuple[int, ...]]:
        """All groups of this name, every rank in one of them; each is ascending, and so are their first ranks."""
        row = _TABLE[name]
        standing = [axis for other, axis in self._axes[row.layout].items() if other not in row.axes]
        members = _sums(self._running(name))
        return [tuple([first + member for member in members]) for first in _sums(standing)]

    def group_of(self, name: str, rank: int) -> tuple[int, ...]:
        """The one of ``groups(name)`` that ``rank`` is in."""
        axes = self._running(name)
        self._check(rank)
        first = rank - sum(rank // axis.stride % axis.size * axis.stride for axis in axes)
        return tuple([first + member for member in _sums(axes)])

    def index(self, name: str, rank: int) -> int:
        """The place of ``rank`` in ``group_of(name, rank)``."""
        self._check(rank)
        place, unit = 0, 1
        for axis in self._running(name):
            place += rank // axis.stride % axis.size * unit
            unit *= axis.size
        return place

    def coordinates(self, rank: int) -> dict[str, int]:
        """The place of ``rank`` in its group of every name."""
        return {name: self.index(name, rank) for name in _TABLE}

    def _running(self, name: str) -> list[_Axis]:
        """The axes that run in a group, the fastest first."""
        row = _TABLE[name]
        return [axis for other, axis in self._axes[row.layout].items() if other in row.axes]

    def _check(self, rank: int) -> None:
        if not 0 <= rank < self.sizes.world:
            raise ValueError(f"rank {rank} of {self.sizes.world}")


def _layouts(sizes: Sizes) -> dict[str, dict[str, int]]:
    """The sizes of the axes, the fastest first, in each way to write a rank."""
    heads = {"kv": sizes.kv_parts, "heads": sizes.head // sizes.kv_parts}
    parity = 2 if sizes.interleaved else 1  # one step between the ranks of a window, or none
    context = {"parity": parity, "window": sizes.window, "windows": sizes.windows // parity}
    tensor = heads | context if sizes.head_first else context | heads
    pipeline = {"pipeline": sizes.pipeline}
    return {
        "work": tensor | {"data": sizes.data} | pipeline,
        "weights": {
            "split": sizes.split,
            "weight": sizes.weight,
            "zero": sizes.zero,
            "zero_replica": sizes.zero_replica,
        }
        | pipeline,
        "experts": {
            "expert_tensor": sizes.expert_tensor,
            "expert_weight": sizes.expert_weight,
            "expert": sizes.expert,
            "expert_zero": sizes.expert_zero,
            "expert_zero_replica": sizes.expert_zero_replica,
        }
        | pipeline,
    }


def _strides(sizes: dict[str, int]) -> dict[str, _Axis]:
    axes, stride = {}, 1
    for name, size in sizes.items():
        axes[name] = _Axis(size, stride)
        stride *= size
    return axes


def _sums(axes: list[_Axis]) -> list[int]:
    """What the axes, the fastest first, add to a rank number: ascending, as strides grow."""
    steps = [range(0, axis.size * axis.stride, axis.stride) for axis in reversed(axes)]
    return [sum(parts) for parts in product(*steps)]
