"""Released models by name: their sizes as a config has them, and how many parameters they have."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from evocore.config import ReleasedModel, load_values
from evocore.errors import UserError
from evocore.nn.experts import RoutedExperts
from evocore.nn.family import ModelFamily, Numerics
from evocore.plugins.manager import PluginRegistry


@dataclass(frozen=True)
class Released:
    """A model that somebody has released.

    Attributes:
        settings: values of the config's ``model`` block.
    """

    name: str
    family: ModelFamily
    settings: Mapping[str, Any]

    @property
    def model(self) -> ReleasedModel:
        """As a config takes it."""
        return ReleasedModel(self.name, self.family.name, self.settings)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a model; ``active`` are those that one token visits, fewer where there are experts."""

    total: int
    active: int


@dataclass(frozen=True)
class Catalogue:
    """Every released size of every family, family by family; and why there are none of a family that failed."""

    models: tuple[Released, ...]
    failed: Mapping[str, str]

    @classmethod
    def of(cls, registry: PluginRegistry) -> Catalogue:
        """Imports the modules of all families."""
        models: list[Released] = []
        failed = {}
        for family in sorted(registry.models(), key=lambda family: family.name):
            try:
                models += [Released(name, family, settings) for name, settings in family.sizes().items()]
            except Exception as error:  # noqa: BLE001 - a stranger's module can raise anything; the others stay
                failed[family.name] = f"{type(error).__name__}: {error}"
        return cls(tuple(models), failed)

    def find(self, name: str) -> Released:
        """The model of that name.

        Raises:
            UserError: there is none.
        """
        known = {one.name: one for one in self.models}
        if name in known:
            return known[name]
        wanted = name.lower()
        close = [one for one in known if one.startswith(wanted)] or difflib.get_close_matches(wanted, known)
        raise UserError(
            f"--model {name}: no released model is known by that name",
            f"one of {', '.join(close or known)}",
            "look with `evocore models`, or write the sizes into the config's block model",
        )


def count_parameters(released: Released) -> ParameterCount:
    """Parameters, counted on the meta device: no memory is taken."""
    data = dict(seq_len=8, micro_bsz=1, total_steps=1)
    config = load_values(dict(data=data), name=released.name, released=released.model).config
    model = released.family.build(config.model.model_dump(), Numerics(torch.float32, torch.float32, torch.float32))
    total = sum(parameter.numel() for parameter in model.parameters())
    experts = [layer for layer in model.modules() if isinstance(layer, RoutedExperts)]
    idle = sum((layer.experts - layer.top_k) * layer.parameters_of_one() for layer in experts)
    return ParameterCount(total, total - idle)
