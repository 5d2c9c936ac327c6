"""Two checkpoints side by side, tensor by tensor: has a refactor, a restart or a change of layout kept every bit?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from evocore.checkpoint.contents import TensorInfo, read_contents
from evocore.checkpoint.tensor_files import TensorReader

_ELEMENTS = 1 << 22  # compared at a time, in float64

Kind = Literal["only in A", "only in B", "shape", "dtype", "values"]


@dataclass(frozen=True)
class Difference:
    """One tensor that is not the same in both.

    Attributes:
        kind: the first thing that differs.
        detail: shapes or dtypes of both, for people.
        max_abs: largest absolute difference, where the shapes agree; NaN if only one side is NaN somewhere.
    """

    name: str
    kind: Kind
    detail: str
    max_abs: float | None


@dataclass(frozen=True)
class Comparison:
    """How checkpoint B differs from checkpoint A.

    Attributes:
        equal: number of tensors that are equal bit for bit, whatever their layout on disk.
        tensors: those that are not, by name.
        state: top-level keys of the JSON state with different values, or on one side only.
    """

    equal: int
    tensors: list[Difference]
    state: list[str]

    @property
    def same(self) -> bool:
        return not self.tensors and not self.state


def compare(a: str | Path, b: str | Path) -> Comparison:
    """Compare two checkpoints; their configs and the versions that wrote them are not looked at, nor are digests.

    Raises:
        UserError: there is no such checkpoint.
        DamagedCheckpointError: one of them is not whole.
    """
    left, right = read_contents(a), read_contents(b)
    read_left, read_right = TensorReader(left.path, left.tensors), TensorReader(right.path, right.tensors)
    differences = []
    for name in sorted(left.tensors.keys() | right.tensors.keys()):
        if name not in right.tensors:
            differences.append(Difference(name, "only in A", _describe(left.tensors[name]), None))
        elif name not in left.tensors:
            differences.append(Difference(name, "only in B", _describe(right.tensors[name]), None))
        elif left.tensors[name].shape != right.tensors[name].shape:
            detail = f"{_describe(left.tensors[name])} against {_describe(right.tensors[name])}"
            differences.append(Difference(name, "shape", detail, None))
        else:
            x, y = read_left.read(name), read_right.read(name)
            if x.dtype != y.dtype:
                detail = f"{_describe(left.tensors[name])} against {_describe(right.tensors[name])}"
                differences.append(Difference(name, "dtype", detail, _max_abs(x, y)))
            elif not torch.equal(x.view(-1).view(torch.uint8), y.view(-1).view(torch.uint8)):
                differences.append(Difference(name, "values", _describe(left.tensors[name]), _max_abs(x, y)))
    equal = len(left.tensors.keys() | right.tensors.keys()) - len(differences)
    absent = object()
    keys = sorted(left.state.keys() | right.state.keys())
    state = [key for key in keys if left.state.get(key, absent) != right.state.get(key, absent)]
    return Comparison(equal, differences, state)


def _describe(info: TensorInfo) -> str:
    return f"{info.dtype} {list(info.shape)}"


def _max_abs(x: torch.Tensor, y: torch.Tensor) -> float:
    largest = torch.zeros((), dtype=torch.float64)
    for left, right in zip(x.view(-1).split(_ELEMENTS), y.view(-1).split(_ELEMENTS), strict=True):
        p, q = left.double(), right.double()
        gap = (p - q).abs()
        gap[(p == q) | (p.isnan() & q.isnan())] = 0.0  # equal infinities, and NaN on both sides
        if gap.numel():
            largest = torch.maximum(largest, gap.max())
    return float(largest)
