"""What a config file or the command line says, as one flat table: dotted key -> value and where it came from.

Flat, because every step of loading (legacy spellings, overrides, derived values) moves single keys, and because the
source of each value has to survive those moves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """A value and its source: a file, ``"--set"``, ``"command line"``, ``"derived"`` or ``"legacy: old=value"``."""

    value: Any
    source: str


Settings = dict[str, Setting]


def flatten(values: Mapping[str, Any], source: str) -> Settings:
    """One setting per plain value. A dict whose keys are no plain names stays one value."""
    return {key: Setting(value, source) for key, value in _flat(values, "")}


def nest(settings: Settings) -> dict[str, Any]:
    """The inverse of flatten, without the sources."""
    tree: dict[str, Any] = {}
    for key, setting in settings.items():
        *path, last = key.split(".")
        place = tree
        for name in path:
            place = place.setdefault(name, {})
        place[last] = setting.value
    return tree


def put(settings: Settings, key: str, setting: Setting) -> None:
    """Set one key; a value that it replaces as a whole, above or below it, goes."""
    parts = key.split(".")
    for length in range(1, len(parts)):
        settings.pop(".".join(parts[:length]), None)
    for below in list(under(settings, key)):
        del settings[below]
    settings[key] = setting


def overlay(settings: Settings, upper: Settings) -> None:
    """Put every setting of ``upper`` over ``settings``."""
    for key, setting in upper.items():
        put(settings, key, setting)


def under(settings: Settings, key: str) -> Iterator[str]:
    """The keys below ``key``."""
    return (name for name in settings if name.startswith(f"{key}."))


def source_of(settings: Settings, key: str) -> str:
    """Where the value of ``key`` came from: its own setting, those below it, the one above it, or the default."""
    if key in settings:
        return settings[key].source
    below = dict.fromkeys(settings[name].source for name in under(settings, key))
    if below:
        return ", ".join(below)
    above = key.rpartition(".")[0]
    whole = settings.get(above)
    return whole.source if whole is not None and whole.value != {} else "default"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        names = isinstance(value, Mapping) and all(isinstance(key, str) and "." not in key for key in value)
        if value and names:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
