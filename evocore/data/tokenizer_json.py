"""Tokenizers in the form of the library ``tokenizers``: a ``tokenizer.json``, as most models bring it today."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evocore.data.tokenizer import Follows, Tokenizer
from evocore.data.tokenizer_config import SpecialToken, TokenizerConfig, read_json, special_token
from evocore.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

_ROLES = {"bos": ("<s>", "<|begin_of_text|>", "<bos>"), "eos": ("</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")}
"""How begin and end are written where no ``tokenizer_config.json`` tells."""


class JsonTokenizer(Tokenizer):
    """The tokenizer in the file ``path``; begin and end of document are those of ``tokenizer_config.json`` beside it.

    Raises:
        UserError: if it is no such file, or the library is not installed.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._content = path, read_json(path)
        self.config = TokenizerConfig.beside(path)
        self.files = (path, *self.config.files)
        self._libraries: dict[Follows, Library] = {}
        self._plain = self._library("nothing")
        added = [entry for entry in self._content.get("added_tokens") or [] if entry.get("special")]
        self._special = dict(special_token(entry, entry["id"]) for entry in added)

    @cached_property
    def vocab_size(self) -> int:
        return max(self._plain.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def bos_id(self) -> int:
        return self._id_of("bos")

    @cached_property
    def eos_id(self) -> int:
        return self._id_of("eos")

    @property
    def special_tokens(self) -> Mapping[str, SpecialToken]:
        return self._special

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        return list(self._library(follows).encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._plain.decode(list(ids), skip_special_tokens=True))

    def prompt(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=True).ids)

    def _id_of(self, role: str) -> int:
        named = self.config.named.get(f"{role}_token")
        names = (named,) if named is not None or self.config.files else _ROLES[role]
        found = (self._plain.token_to_id(name) for name in names if name is not None)
        return next((int(number) for number in found if number is not None), -1)

    def _library(self, follows: Follows) -> Library:
        """The library's tokenizer for texts that follow something."""
        if follows not in self._libraries:
            changed = self._content if follows == "nothing" else _joined(self._content, follows == "text")
            same = follows != "nothing" and changed == self._content
            self._libraries[follows] = self._libraries["nothing"] if same else _load(self._path, changed)
        return self._libraries[follows]


def _load(path: Path, content: dict[str, Any]) -> Library:
    try:
        from tokenizers import Tokenizer as Library
    except ImportError as error:
        raise UserError(
            f"{path} is a tokenizer.json, and the package tokenizers is not installed",
            "the package that reads such files",
            "pip install tokenizers, or name a SentencePiece model",
        ) from error
    try:
        found = Library.from_str(json.dumps(content))
    except Exception as error:  # noqa: BLE001 - the library raises Exception itself for whatever it cannot read
        raise UserError(
            f"{path} is no tokenizer ({error})", "a tokenizer.json of the library tokenizers", "copy the file again"
        ) from None
    found.encode_special_tokens = True  # text stays text
    return found


def _joined(content: dict[str, Any], to_text: bool) -> dict[str, Any]:
    """A ``tokenizer.json`` for text that does not begin a document.

    Llama's way of spelling a space before a text concerns the first one alone (``Metaspace`` with scheme "first") or
    each after a special token, too; none concerns a text that goes on (``to_text``).
    """
    return {
        name: _without_prefix(part, to_text) if name in ("normalizer", "pre_tokenizer") else part
        for name, part in content.items()
    }


def _without_prefix(part: Any, to_text: bool) -> Any:
    if not isinstance(part, dict):
        return part
    for steps in ("normalizers", "pretokenizers"):
        if isinstance(part.get(steps), list):
            kept = [_without_prefix(step, to_text) for step in part[steps]]
            return {**part, steps: [step for step in kept if step is not None]}
    if part.get("type") == "Metaspace" and (to_text or part.get("prepend_scheme") == "first"):
        return {**part, "prepend_scheme": "never", "add_prefix_space": False}
    if to_text and part.get("type") == "ByteLevel":
        return {**part, "add_prefix_space": False}
    return None if to_text and part.get("type") == "Prepend" else part
