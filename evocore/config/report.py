"""What ``evocore config show`` and the launch report say about a config: facts for programs, text for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evocore.config.loaded import LoadedConfig
from evocore.config.schema_keys import leaves, schema_keys
from evocore.errors import UserError


def report_facts(loaded: LoadedConfig, problems: Sequence[UserError], world_size: int) -> dict[str, Any]:
    """The config as plain JSON values: every key with value, source and description, the notes and the problems."""
    keys, plain = schema_keys(), loaded.config.model_dump(mode="json")
    return {
        "file": loaded.name,
        "world_size": world_size,
        "values": [
            {
                "key": key,
                "value": _at(plain, key),
                "source": loaded.sources[key],
                "description": keys[key].description,
            }
            for key, _ in leaves(loaded.config)
        ],
        "notes": list(loaded.notes),
        "problems": [{"wrong": one.wrong, "expected": one.expected, "fix": one.fix} for one in problems],
    }


def report_text(facts: dict[str, Any], describe: bool = False) -> str:
    """The same facts as lines grouped by block."""
    lines = [facts["file"]]
    blocks: dict[str, list[dict[str, Any]]] = {}
    for row in facts["values"]:
        blocks.setdefault(row["key"].rpartition(".")[0], []).append(row)
    for block, rows in blocks.items():
        table = [(row["key"].rpartition(".")[2], repr(row["value"]), row) for row in rows]
        width = max(len(name) for name, _, _ in table)
        value_width = min(40, max(len(value) for _, value, _ in table))
        lines += ["", block or "(top level)"]
        for name, value, row in table:
            lines.append(f"  {name:{width}}  {value:{value_width}}  {row['source']}")
            if describe:
                lines.append(f"  {'':{width}}    {row['description']}")
    if facts["notes"]:
        lines += ["", "notes", *(f"  {note}" for note in facts["notes"])]
    if facts["problems"]:
        lines += ["", f"cannot run yet (world size {facts['world_size']}):"]
        for number, one in enumerate(facts["problems"], 1):
            lines += [
                f"  {number}. {one['wrong']}",
                f"     expected: {one['expected']}",
                f"     to fix: {one['fix']}",
            ]
    return "\n".join(lines)


def _at(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree
