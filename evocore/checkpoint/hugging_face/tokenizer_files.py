"""The files of a tokenizer beside a model's weights: which they are, and how many token ids they know.

They are counted without any library of tokenizers, from JSON and from the few fields of a SentencePiece model that
say where a piece begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from evocore.checkpoint.hugging_face.json_file import read_object
from evocore.errors import UserError

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Names by which ``transformers`` finds a tokenizer's files; its code, ``tokenization_*.py``, belongs to them."""


def tokenizer_files(path: Path) -> list[Path]:
    """Those that are in a folder, and the Python files of a model that ``transformers`` itself does not have."""
    named = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    return named + sorted(file for file in path.glob("*.py") if file.is_file())


def require_vocabulary(path: Path, vocab_size: int) -> None:
    """Compare the tokenizer in a folder with a model's vocabulary.

    Raises:
        UserError: it has ids that the model has no row for, or a file is not what its name says.
    """
    for file, ids in _ids(path):
        if ids > vocab_size:
            raise UserError(
                f"{file} has token ids up to {ids - 1}, the model's vocabulary ends at {vocab_size - 1}",
                f"at most {vocab_size} tokens, as model.vocab_size (vocab_size in config.json) says",
                "take the tokenizer that belongs to the model, or a model whose embedding was enlarged for it",
            )


def _ids(path: Path) -> Iterator[tuple[Path, int]]:
    """Each file and the highest id that it knows, plus one."""
    if (file := path / "tokenizer.json").is_file():
        found = read_object(file)
        model = found.get("model") or {}
        vocabulary = model.get("vocab") or {}
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else range(len(vocabulary))
        added = [token.get("id") for token in found.get("added_tokens") or []]
        yield file, _highest([*ids, *added], file)
    for name in ("added_tokens.json", "vocab.json"):
        if (file := path / name).is_file():
            yield file, _highest(read_object(file).values(), file)
    if (file := path / "tokenizer.model").is_file():
        yield file, _pieces(file)


def _highest(ids: Any, file: Path) -> int:
    try:
        return max((int(number) for number in ids), default=-1) + 1
    except (TypeError, ValueError) as error:
        raise UserError(f"{file} has a token id that is no number", "token ids", "download it again") from error


def _pieces(file: Path) -> int:
    """Pieces of a SentencePiece model: how often its protocol buffer has field 1 (``sentencepiece_model.proto``)."""
    data, at, pieces = file.read_bytes(), 0, 0
    try:
        while at < len(data):
            key, at = _varint(data, at)
            pieces += key == 0b01010  # field 1, of a length
            if key & 7 == 2:
                length, at = _varint(data, at)
                at += length
            elif key & 7 == 0:
                _, at = _varint(data, at)
            else:
                at += {1: 8, 5: 4}[key & 7]
    except (IndexError, KeyError) as error:
        raise UserError(f"{file} is no SentencePiece model", "a protocol buffer", "download it again") from error
    return pieces


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
