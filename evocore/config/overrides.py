"""Values from the command line: ``--set a.b.c=VALUE`` and the flags that are keys of the config."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from typing import Any

from evocore.config.settings import Settings, flatten, overlay
from evocore.errors import UserError


def parse_sets(sets: Iterable[str]) -> Settings:
    """Settings of all ``--set`` arguments; a later one wins.

    A value is read as a Python literal, in which dicts may be written as in config files, and, where it is none, as
    text: ``8``, ``1e-4``, ``True``, ``None``, ``{'size': 2}``, ``dict(size=2)``, ``torch.float32``.

    Raises:
        UserError: if one has no ``=`` or no key.
    """
    settings: Settings = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise UserError(f"--set {text}", "KEY=VALUE", "write it as --set data.seq_len=4096")
        overlay(settings, flatten({key.strip(): _literal(value)}, "--set"))
    return settings


def from_flags(flags: Mapping[str, Any]) -> Settings:
    """Settings of command-line flags by dotted key; a flag that was not given is None and says nothing."""
    return flatten({key: value for key, value in flags.items() if value is not None}, "command line")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(_WithoutCalls().visit(ast.parse(text.strip(), mode="eval")))
    except (ValueError, SyntaxError):  # no literal: text, as a shell user expects
        return text


class _WithoutCalls(ast.NodeTransformer):
    """Writes ``dict(key=value)`` as ``{'key': value}``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = [keyword.arg for keyword in node.keywords]
        if not isinstance(node.func, ast.Name) or node.func.id != "dict" or node.args or None in names:
            return node
        return ast.Dict([ast.Constant(name) for name in names], [keyword.value for keyword in node.keywords])
