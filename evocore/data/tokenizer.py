"""Text to token ids and back, whatever the tokenizer is made with: what the data room and generation ask of one.

SentencePiece models (``tokenizer.model``) and those of the library ``tokenizers`` (``tokenizer.json``) are read. Text
never becomes a token with a meaning of its own: a document that spells ``<|im_end|>`` does not end a turn.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from evocore.data.tokenizer_config import SpecialToken, TokenizerConfig
from evocore.errors import UserError

Follows = Literal["nothing", "token", "text"]
"""What a text comes after: nothing, as it begins a document; a special token; or other text, which it goes on."""
NAMES = ("tokenizer.json", "tokenizer.model")
"""Of the files that are looked for in a folder."""


class Tokenizer(ABC):
    """What both kinds have; see :meth:`load`.

    Attributes:
        files: that it was read from; the first one is the model.
        config: of ``tokenizer_config.json`` beside it.
    """

    files: tuple[Path, ...]
    config: TokenizerConfig

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """The tokenizer in a file, or in a folder with one.

        Raises:
            UserError: if there is none, or it is not what it should be.
        """
        path = Path(path)
        if path.is_dir():
            path = next((path / name for name in NAMES if (path / name).is_file()), path / NAMES[0])
        if not path.is_file():
            raise UserError(
                f"there is no tokenizer at {path}",
                "a SentencePiece .model file, a tokenizer.json, or a folder with one of them",
                "mend data.tokenizer_path or --tokenizer, or train one: `evocore data tokenize --train-tokenizer`",
            )
        with path.open("rb") as file:
            is_json = file.read(64).lstrip().startswith(b"{")
        if is_json:
            from evocore.data.tokenizer_json import JsonTokenizer

            return JsonTokenizer(path)
        from evocore.data.sentencepiece_model import SentencePieceTokenizer

        return SentencePieceTokenizer(path)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids; all lie below it."""

    @property
    @abstractmethod
    def bos_id(self) -> int:
        """Id at the begin of a document; -1 if it has none."""

    @property
    @abstractmethod
    def eos_id(self) -> int:
        """Id at the end of a document; -1 if it has none."""

    @property
    @abstractmethod
    def special_tokens(self) -> Mapping[str, SpecialToken]:
        """Tokens that no text becomes, by how they are written."""

    @abstractmethod
    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        """Ids of ``text``, without begin and end of document.

        Args:
            follows: what stands before it. Some tokenizers put a space before a text that begins a document; none
                does so before one that goes on.
        """

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; special tokens vanish."""

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued: after the begin of a document, if there is such a token."""
        return [*([self.bos_id] if self.bos_id >= 0 else []), *self.encode(text)]
