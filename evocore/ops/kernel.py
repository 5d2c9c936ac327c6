"""What a provider says about one implementation of one op, before anything of it is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from packaging.requirements import InvalidRequirement, Requirement


@dataclass(frozen=True)
class Request:
    """What a layer needs of an op; all of it is known before the first step. Each op extends it."""

    dtype: torch.dtype

    @property
    def op(self) -> str:
        """Name of the contract."""
        raise TypeError(f"{type(self).__name__} does not say which op it asks for")

    def __str__(self) -> str:
        words = [str(self.dtype).removeprefix("torch.")]
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name != "dtype" and value is not None and value is not False:
                words.append(entry.name if value is True else f"{entry.name}={value}")
        return " ".join(words)


def _no_limits(request: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Kernel:
    """One implementation of one op.

    Attributes:
        op: name of the contract it fulfils, e.g. ``"rms_norm"``.
        provider: short name by which people force it, e.g. ``"native"``.
        devices: device types it runs on, e.g. ``{"cpu"}``.
        target: ``"module:function"``, imported when it is first chosen. For a contract that is a pair of functions
            it names the pair.
        arguments: if given, the target is a maker: it is called once with these, e.g. a device's launch parameters,
            and what it returns is the kernel.
        dtypes: dtypes of the activations it accepts.
        requires: PEP 508 requirements that must be installed, e.g. ``("some-package>=2.6",)``.
        supports: None if it can serve the request, otherwise the reason in a few words.
        priority: the higher is preferred; ``evidence`` says which measurement it rests on.
        deterministic: whether equal inputs always give bit-equal outputs and gradients.
    """

    op: str
    provider: str
    devices: frozenset[str]
    target: str
    dtypes: frozenset[torch.dtype]
    requires: tuple[str, ...] = ()
    supports: Callable[[Any], str | None] = _no_limits
    priority: int = 0
    evidence: str = ""
    deterministic: bool = True
    arguments: Mapping[str, Any] | None = field(default=None, hash=False)

    def why_not(self, request: Request, device: str) -> str | None:
        """The first reason why this kernel cannot serve ``request`` on ``device``, or None."""
        if device not in self.devices:
            return f"runs on {', '.join(sorted(self.devices))}"
        if request.dtype not in self.dtypes:
            return f"no {str(request.dtype).removeprefix('torch.')}"
        for text in self.requires:
            missing = _why_unmet(text)
            if missing:
                return missing
        try:
            return self.supports(request)
        except Exception as error:  # noqa: BLE001 - a stranger's check can raise anything; the table shows it
            return f"its supports() raised {type(error).__name__}: {error}"

    def load(self) -> Callable[..., Any]:
        """Import the target and return the kernel."""
        module, _, name = self.target.partition(":")
        target = getattr(import_module(module), name)
        return target if self.arguments is None else target(**self.arguments)  # type: ignore[no-any-return]


@lru_cache(maxsize=256)
def _why_unmet(text: str) -> str | None:
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"names what it needs as {text!r}, which is no requirement"
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"needs {requirement} (not installed)"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"needs {requirement} (found {found})"
    return None
