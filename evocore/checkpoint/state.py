"""The part of a checkpoint that is not tensors: JSON, and only what JSON gives back unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TypeAlias

from evocore.errors import UserError

JSON: TypeAlias = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]


def to_json(value: JSON) -> bytes:
    """JSON text of a checked value. Floats keep every bit; infinities and NaN are written as Python reads them."""
    return json.dumps(value, indent=1).encode()


def check_json(value: object, where: str) -> None:
    """Make sure that ``value`` comes back from JSON as it was.

    Args:
        where: what to call ``value`` in an error, e.g. ``"state"``.

    Raises:
        UserError: something in it would not (a tuple, a key that is a number, an array).
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise _not_json(f"{where} has the key {key!r}, a {type(key).__name__}")
            check_json(item, f"{where}[{key!r}]")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]")
    elif type(value) not in (type(None), bool, int, float, str):
        raise _not_json(f"{where} is a {type(value).__name__}")


def merge_states(states: Iterable[Mapping[str, JSON]]) -> dict[str, JSON]:
    """Every key of every rank's state; a key that several ranks gave is taken from the lowest of them.

    The same rule holds for tensors, so what differs between ranks needs the rank in its key.
    """
    merged: dict[str, JSON] = {}
    for state in states:
        for key, value in state.items():
            merged.setdefault(key, value)
    return merged


def _not_json(wrong: str) -> UserError:
    return UserError(
        wrong=f"cannot be kept in a checkpoint as JSON: {wrong}",
        expected="None, bool, int, float, str, and lists and dicts of them with str keys",
        fix="convert it (tuple to list, numpy number to int or float), or pass it among the tensors",
    )
