"""Answers on standard output: a table for people, or the same facts as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evocore.plugins.manager import PluginRegistry

UNWRAPPED = 1000
"""Columns of a table that goes into a file or another program: nothing is folded there."""


def print_json(facts: Any) -> None:
    """Plain data as indented JSON; what JSON does not know is written as text."""
    print(json.dumps(facts, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """One line of headings, then one line per row; folded to the terminal's width if there is one.

    A cell is written as ``str`` gives it, None as nothing.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else UNWRAPPED, highlight=False)
    table = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    print("\n".join(lines if console.is_terminal else [line.rstrip() for line in lines]))


def tell_failed_plugins(registry: PluginRegistry) -> None:
    """One line on standard error if plug-ins are missing from the answer because they failed."""
    failed = [status.name for status in registry.statuses if status.detail]
    if failed:
        print(f"evocore: without what {', '.join(failed)} would add: `evocore doctor` tells why", file=sys.stderr)
