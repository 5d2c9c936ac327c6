"""The schema as a flat table of dotted keys: what error messages, ``config show`` and the docs read."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from evocore.config.schema import Config
from evocore.config.schema_base import Block


@dataclass(frozen=True)
class Key:
    """What the schema says about one key or block.

    Attributes:
        name: dotted, e.g. ``"parallel.tensor.size"``.
        type: for people, e.g. ``"int | None"``.
        required: whether there is no default; derived keys have none either.
        description: one line.
        is_block: whether other keys lie below it.
    """

    name: str
    type: str
    required: bool
    description: str
    is_block: bool


@cache
def schema_keys() -> dict[str, Key]:
    """Every key and block by dotted name, in the order of the schema."""
    return {key.name: key for key in _keys(Config, "")}


def leaves(block: Block, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value of a loaded config with its dotted key; an optional block that is None is one value."""
    for name in type(block).model_fields:
        value = getattr(block, name)
        if isinstance(value, Block):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _keys(block: type[Block], prefix: str) -> Iterator[Key]:
    for name, field in block.model_fields.items():
        inner = _block_of(field)
        kind = "dict" if inner else _type_name(field.annotation)
        yield Key(prefix + name, kind, field.is_required(), field.description or "", inner is not None)
        if inner:
            yield from _keys(inner, f"{prefix}{name}.")


def _block_of(field: FieldInfo) -> type[Block] | None:
    """The block that a field holds or may hold, None for a plain value."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, Block):
            return kind
    return None


def _type_name(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin in (Union, types.UnionType):
        return " | ".join(_type_name(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(repr(argument) for argument in arguments)
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(_type_name(argument) for argument in arguments)}]"
    return "None" if kind is type(None) else getattr(kind, "__name__", str(kind))
