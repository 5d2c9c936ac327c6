"""One parameter under several names: kept together while modules and devices change beneath it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn


def tied_parameters(model: nn.Module) -> dict[str, str]:
    """Every further name of a parameter -> its first name, which is the one that ``named_parameters`` tells."""
    first: dict[nn.Parameter, str] = {}
    further = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            further[name] = first[parameter]
    return further


def tie(model: nn.Module, tied: Mapping[str, str]) -> None:
    """Let each further name of ``tied_parameters`` be the same parameter again."""
    for further, first in tied.items():
        prefix, _, kind = further.rpartition(".")
        setattr(model.get_submodule(prefix), kind, model.get_parameter(first))
