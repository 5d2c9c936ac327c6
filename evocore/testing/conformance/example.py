"""One call of an operator as data, and the recipes that make such calls.

A recipe makes the same numbers each time it is asked, on the host, in whichever dtype: so that two kernels, two
devices and two precisions are compared on the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from evocore.ops.kernel import Request
from evocore.testing.conformance.choices import Choices

SIZES = ("small", "medium", "large")
"""Of cases: a few numbers, which an interpreter copes with; more than one block; what a model would ask for."""


@dataclass(frozen=True)
class Example:
    """One call: ``function(*inputs, *constants, **options)``.

    Attributes:
        request: what a layer would ask resolution for.
        inputs: the differentiable tensors.
        activations: so many of the inputs, from the first on, may have any strides.
        constants: the other positional arguments.
        options: keyword arguments.
        whole: options that the oracle is called with instead, where parts must add up to the whole.
        also: what else a layer would ask for, if its parts are not alike.
    """

    request: Request
    inputs: tuple[Tensor, ...]
    activations: int = 0
    constants: tuple[Any, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    also: tuple[Request, ...] = ()

    def exact(self) -> Example:
        """The same numbers in float64, as the oracle is called with them."""
        options = {**self.options, **self.whole}
        inputs, constants, options = map_tensors(_widened, (self.inputs, self.constants, options))
        return replace(self, inputs=inputs, constants=constants, options=options)

    def to(self, device: torch.device) -> Example:
        """The same call with everything on ``device``."""
        inputs, constants, options = map_tensors(lambda x: x.to(device), (self.inputs, self.constants, self.options))
        return replace(self, inputs=inputs, constants=constants, options=options)

    def relaid(self, layout: Callable[[Tensor], Tensor]) -> Example:
        """The same call with its activations stored in another way."""
        inputs = (layout(x) if index < self.activations else x for index, x in enumerate(self.inputs))
        return replace(self, inputs=tuple(inputs))

    def tensors(self) -> list[Tensor]:
        """All that go in, wherever they are."""
        found: list[Tensor] = []
        map_tensors(lambda x: found.append(x) or x, (self.inputs, self.constants, self.options))  # type: ignore[func-returns-value]
        return found


class Recipe(Protocol):
    """Makes the example of a case in a dtype."""

    def __call__(self, dtype: torch.dtype) -> Example: ...


@dataclass(frozen=True)
class Case:
    """A recipe for an ``Example``.

    Attributes:
        op: name of the contract.
        label: of the case, unique in its op.
        make: the recipe.
        size: one of ``SIZES``.
        mixed: whether some inputs are float32 whatever the dtype is; only low precision makes that a case of its own.
        empty: whether there is no token: what is 0 in the oracle must be 0 to the bit.
        representative: whether it stands for others like it: where calls are slow, only such are checked thoroughly.
    """

    op: str
    label: str
    make: Recipe
    size: str = "small"
    mixed: bool = False
    empty: bool = False
    representative: bool = True

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True)
class Grid:
    """What the kit knows of one op.

    Attributes:
        cases: the declared ones.
        draw: makes a recipe out of choices.
        adapt: makes a differentiable function of ``Example``'s form that returns tensors out of a kernel.
    """

    cases: tuple[Case, ...]
    draw: Callable[[Choices], Recipe]
    adapt: Callable[[Any], Callable[..., Any]] = lambda kernel: kernel  # noqa: E731


class Numbers:
    """Normal numbers in float64, the same in every run: an example of any dtype rounds the same ones."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(1234 + seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)

    def below(self, high: int, size: int) -> Tensor:
        """int64 numbers in ``[0, high)``."""
        return torch.randint(high, (size,), generator=self._generator)

    def order(self, size: int) -> Tensor:
        """A permutation of ``[0, size)``."""
        return torch.randperm(size, generator=self._generator)


def words(*parts: str, **flags: bool) -> str:
    """A label out of its parts and of the names of the flags that are set."""
    return "-".join((*parts, *(name for name, value in flags.items() if value)))


def wide_if(wanted: bool, dtype: torch.dtype) -> torch.dtype:
    """float32 beside low precision if it is wanted, otherwise ``dtype`` itself."""
    return torch.float32 if wanted and dtype.itemsize < 4 else dtype


def map_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """``value`` with every tensor changed, inside tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple | list):
        return type(value)(map_tensors(change, entry) for entry in value)
    if isinstance(value, dict):
        return {key: map_tensors(change, entry) for key, entry in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{entry.name: map_tensors(change, getattr(value, entry.name)) for entry in fields(value)}
        )
    return value


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x
