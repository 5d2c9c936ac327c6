"""Loads a config: file, old spellings, command line, derived values, types; remembers where each value is from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evocore.config.derive import derive
from evocore.config.legacy import modernise
from evocore.config.overrides import from_flags, parse_sets
from evocore.config.problems import combined, shown
from evocore.config.release import ReleasedModel, put_released
from evocore.config.schema import Config
from evocore.config.schema_keys import leaves
from evocore.config.settings import Settings, flatten, nest, overlay, source_of
from evocore.config.source_file import run_file, shown_path
from evocore.config.unsupported import inert_reason
from evocore.config.validate import validate


@dataclass(frozen=True)
class LoadedConfig:
    """A config with its history.

    Attributes:
        config: the typed values.
        sources: dotted key -> ``"default"``, a file, ``"--set"``, ``"command line"``, ``"derived"`` or
            ``"legacy: old=value"``.
        notes: one line per legacy spelling, derived or overwritten value, ignored helper constant and group of keys
            without effect.
        name: the file, as it was given.
    """

    config: Config
    sources: dict[str, str]
    notes: list[str]
    name: str


def load_config(
    path: str | Path,
    sets: Iterable[str] = (),
    extra: Mapping[str, Any] | None = None,
    released: ReleasedModel | None = None,
) -> LoadedConfig:
    """Load a config file in InternEvo's form.

    Args:
        path: a Python file; it is executed.
        sets: ``KEY=VALUE`` overrides, a later one wins.
        extra: values of command-line flags by dotted key, over everything else; None is a flag that was not given.
        released: takes the place of the model that the file describes.

    Raises:
        UserError: naming every mistake: a file that does not run, unknown and missing keys, wrong types,
            contradictory spellings.
    """
    path = Path(path)
    return _load(run_file(path), shown_path(path), sets, extra, released)


def load_values(
    values: Mapping[str, Any],
    sets: Iterable[str] = (),
    name: str = "values",
    released: ReleasedModel | None = None,
) -> LoadedConfig:
    """As load_config, from a dict in the form of a config file; ``name`` stands for the file."""
    return _load(flatten(values, name), name, sets, None, released)


def _load(
    settings: Settings,
    name: str,
    sets: Iterable[str],
    extra: Mapping[str, Any] | None,
    released: ReleasedModel | None,
) -> LoadedConfig:
    notes = _drop_helpers(settings)
    problems = []
    merged: Settings = {}
    for layer in (settings, parse_sets(sets), from_flags(extra or {})):
        modern, layer_notes, layer_problems = modernise(layer)
        if layer is settings and released is not None:
            layer_notes.append(put_released(modern, released))
        overlay(merged, modern)
        notes += layer_notes
        problems += layer_problems
    notes += derive(merged)
    config, mistakes = validate(merged, name)
    problems += mistakes
    if config is None or problems:
        raise combined(problems, name)
    sources = {key: source_of(merged, key) for key, _ in leaves(config)}
    return LoadedConfig(config, sources, notes + _inert(sources), name)


def _drop_helpers(settings: Settings) -> list[str]:
    """Take out upper-case names that are no keys (SEQ_LEN, TENSOR_SHAPE): they helped to write the file."""
    notes = []
    for name, value in nest(settings).items():
        if name.isupper() and name not in Config.model_fields:
            source = source_of(settings, name)
            notes.append(f"{name}={shown(value)} ({source}) is ignored: a helper constant")
            for key in [key for key in settings if key.partition(".")[0] == name]:
                del settings[key]
    return notes


def _inert(sources: Mapping[str, str]) -> list[str]:
    given: dict[str, list[str]] = {}
    for key, source in sources.items():
        reason = inert_reason(key)
        if reason and source not in ("default", "derived"):
            given.setdefault(reason, []).append(key)
    return [f"{', '.join(keys)}: without effect, {reason}" for reason, keys in given.items()]
