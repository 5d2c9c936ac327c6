"""What lies beside a tokenizer's model in Hugging Face's form: names of special tokens, and a chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evocore.errors import UserError

CONFIG, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class SpecialToken:
    """A token that is not made of text.

    Attributes:
        strips_left, strips_right: whether it swallows the white space on that side where it is found in a text.
    """

    id: int
    strips_left: bool = False
    strips_right: bool = False


@dataclass(frozen=True)
class TokenizerConfig:
    """What the files say.

    Attributes:
        named: role (``bos_token``, ...) -> how the token is written.
        added: special tokens by how they are written.
        chat_template: Jinja, None if there is none.
        files: that were read.
    """

    named: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[str, SpecialToken] = field(default_factory=dict)
    chat_template: str | None = None
    files: tuple[Path, ...] = ()

    @classmethod
    def beside(cls, model: Path) -> TokenizerConfig:
        """Of the files in the folder of a tokenizer's model; nothing if there are none.

        Raises:
            UserError: if one is not what its name says.
        """
        path, template = model.with_name(CONFIG), model.with_name(TEMPLATE)
        files = tuple(file for file in (path, template) if file.is_file())
        content = read_json(path) if path.is_file() else {}
        named = {role: _text(content.get(role)) for role in _NAMED}
        chat = template.read_text(encoding="utf-8") if template.is_file() else _default(content.get("chat_template"))
        added = content.get("added_tokens_decoder")
        pairs = added.items() if isinstance(added, dict) else ()
        return cls(
            {role: text for role, text in named.items() if text},
            dict(special_token(entry, int(number)) for number, entry in pairs if _is_special(entry)),
            chat,
            files,
        )


def special_token(entry: Mapping[str, Any], number: int) -> tuple[str, SpecialToken]:
    """An entry of ``added_tokens``, by how the token is written."""
    return entry["content"], SpecialToken(number, bool(entry.get("lstrip")), bool(entry.get("rstrip")))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file.

    Raises:
        UserError: if it is not JSON, or no object.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", "a JSON object", "copy the file again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds a {type(found).__name__}", "a JSON object", "copy the file again")
    return found


def _is_special(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("content"), str) and bool(entry.get("special"))


def _text(token: Any) -> str | None:
    """A token is written as text, or as an object with options."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _default(template: Any) -> str | None:
    """The template; of several with names the one called default."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
