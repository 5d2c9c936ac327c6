"""Slurm's short form of a list of machines, read without asking Slurm: containers often lack its tools."""

from __future__ import annotations

import re

from evocore.errors import UserError

# One machine or family of machines: text, then any number of bracketed ranges with text behind each.
_ITEM = re.compile(r"[^\[\],\s]*(?:\[[\d,-]+\][^\[\],\s]*)*")


def expand_nodes(text: str) -> list[str]:
    """The names that ``node[01-03,07],login`` stands for, in order: node01, node02, node03, node07, login.

    Raises:
        UserError: if the text has another form.
    """
    names: list[str] = []
    position = 0
    while position <= len(text):
        item = _ITEM.match(text, position)
        assert item is not None  # the pattern matches the empty text
        if not item.group() or item.end() < len(text) and text[item.end()] != ",":
            raise _refusal(text)
        names += _expand_item(item.group(), text)
        position = item.end() + 1
    return names


def _expand_item(item: str, text: str) -> list[str]:
    before, bracket, rest = item.partition("[")
    if not bracket:
        return [item]
    ranges, _, after = rest.partition("]")
    names = []
    for word in ranges.split(","):
        first, dash, last = word.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(last) < int(first):
            raise _refusal(text)
        for number in range(int(first), int(last) + 1):
            names += [f"{before}{number:0{len(first)}}{tail}" for tail in _expand_item(after, text)]
    return names


def _refusal(text: str) -> UserError:
    return UserError(
        f"SLURM_JOB_NODELIST={text!r} cannot be read",
        "names of machines like node[01-04,07],login1",
        "name the machine of rank 0 with --host and a free port of it with --port",
    )
