"""From settings to a typed Config, or to every mistake in them at once, in our words instead of pydantic's."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from evocore.config.derive import ALWAYS_DERIVED
from evocore.config.problems import shown
from evocore.config.schema import Config
from evocore.config.schema_keys import Key, schema_keys
from evocore.config.settings import Settings, nest, source_of
from evocore.errors import UserError


def validate(settings: Settings, name: str) -> tuple[Config | None, list[UserError]]:
    """The config, or None and one error per wrong key.

    Args:
        settings: present spellings, derived values filled in.
        name: of the file, for keys that are missing in it.
    """
    try:
        return Config.model_validate(nest(settings)), []
    except ValidationError as error:
        return None, list(_problems(error.errors(include_url=False), settings, name))


def _problems(details: list[ErrorDetails], settings: Settings, name: str) -> Iterator[UserError]:
    expectations: dict[str, list[str]] = {}
    for detail in details:
        key = _key_of(detail["loc"])
        source = source_of(settings, key)
        if detail["type"] == "missing":
            if not _follows(key):
                yield _missing(schema_keys()[key], name)
        elif detail["type"] == "extra_forbidden":
            unknown = ".".join(str(part) for part in detail["loc"])
            yield _unknown(unknown, shown(detail["input"]), source_of(settings, unknown))
        elif source != "derived":  # of wrong inputs, which have errors of their own
            expectations.setdefault(key, []).append(_expectation(detail))
    for key, expected in expectations.items():
        value = _value(settings, key)
        yield UserError(
            f"{key}={shown(value)} ({source_of(settings, key)}) does not fit",
            " or ".join(dict.fromkeys(expected)),
            f"set {key} to such a value: {schema_keys()[key].description}",
        )


def _missing(key: Key, name: str) -> UserError:
    if key.is_block:
        inner = [one.name for one in schema_keys().values() if one.name.startswith(f"{key.name}.") and one.required]
        wanted = [one.rpartition(".")[2] for one in inner if one not in ALWAYS_DERIVED]
        expected = f"{key.name}=dict({', '.join(f'{one}=...' for one in wanted)})"
    else:
        expected = f"{key.type}: {key.description}"
    return UserError(f"{key.name} is missing in {name}", expected, f"add it, or give --set {key.name}=VALUE")


def _unknown(key: str, value: str, source: str) -> UserError:
    nearest = nearest_key(key)
    wrong = f"{key}={value} ({source}): there is no such key"
    if nearest:
        return UserError(
            wrong, f"{nearest} ({schema_keys()[nearest].description})", f"write {nearest}, or remove {key}"
        )
    return UserError(wrong, "a key of `evocore config show --describe`", f"remove {key}")


def nearest_key(key: str) -> str | None:
    """The known key that was most likely meant: a neighbour, its namesake in another block, or one similar to it."""
    block, _, name = key.rpartition(".")
    known = schema_keys()
    here: dict[str, str] = {}
    elsewhere: dict[str, str] = {}
    for one in known:
        place, _, last = one.rpartition(".")
        (here if place == block else elsewhere).setdefault(last.lower(), one)
    for names, cutoff in ((here, 0.75), (elsewhere, 1.0), (here, 0.6), (elsewhere, 0.75)):
        close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=cutoff)
        if close:
            return names[close[0]]
    return None


def _follows(key: str) -> bool:
    """Whether nobody has to write ``key``, because it, or all that is required in it, is derived."""
    below = {one.name for one in schema_keys().values() if one.name.startswith(f"{key}.") and one.required}
    return key in ALWAYS_DERIVED or (bool(below) and below <= ALWAYS_DERIVED)


def _key_of(location: tuple[int | str, ...]) -> str:
    """The longest known key at the start of pydantic's location, which goes on into lists and unions."""
    parts = [str(part) for part in location]
    while parts and ".".join(parts) not in schema_keys():
        parts.pop()
    return ".".join(parts)


def _expectation(detail: ErrorDetails) -> str:
    key = _key_of(detail["loc"])
    if key in schema_keys() and schema_keys()[key].is_block and detail["type"] in ("model_type", "dict_type"):
        names = [one.removeprefix(f"{key}.") for one in schema_keys() if one.startswith(f"{key}.")]
        return f"a dict with some of: {', '.join(one for one in names if '.' not in one)}"
    inside = "".join(f"[{part}]" for part in detail["loc"] if isinstance(part, int))
    text = detail["msg"].removeprefix("Input should be ")
    return f"{text} at {inside}" if inside else text


def _value(settings: Settings, key: str) -> Any:
    if key in settings:
        return settings[key].value
    tree: Any = nest(settings)
    for name in key.split("."):
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree
