"""SentencePiece models: used, and trained on text or source code.

A model that is trained here gives every text back exactly, character for character: no normalisation, no prefix, runs
of spaces as pieces, newline, tab and carriage return as pieces of their own, and bytes for what is rare.
Ids: 0 unknown (never produced), 1 begin of document, 2 end of document.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import sentencepiece

from evocore.data.tokenizer import Follows, Tokenizer
from evocore.data.tokenizer_config import SpecialToken, TokenizerConfig
from evocore.errors import UserError

_SPACE = "\u2581"  # SentencePiece's spelling of a space, which is also a character of its own
_LONGEST_LINE = 4096  # characters in one training sentence: longer ones teach nothing and cost much
_OWN_PIECES = ["\n", "\t", "\r"]
# Fields of a protocol buffer that come twice are merged: at the end of a model, normalizer_spec (3) with
# add_dummy_prefix (3) off.
_WITHOUT_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


class SentencePieceTokenizer(Tokenizer):
    """The tokenizer in the ``.model`` file ``path``.

    Raises:
        UserError: if it is no SentencePiece model.
    """

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self.config = TokenizerConfig.beside(path)
        self.files = (path, *self.config.files)
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self._content)
        except RuntimeError as error:
            raise UserError(
                f"{path} is no tokenizer ({error})",
                "a SentencePiece .model file or a tokenizer.json",
                "copy the file again or name another one",
            ) from None
        self._prefixes = self._model.encode("a", out_type=str)[0].startswith(_SPACE)
        # A model that puts a space before every text, as some from elsewhere do, cannot encode it in parts.
        in_bytes = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        self._space_ids = None if self._prefixes or self._model.unk_id() in in_bytes else in_bytes

    @cached_property
    def vocab_size(self) -> int:
        added = [token.id + 1 for token in self.config.added.values()]
        return max(int(self._model.vocab_size()), *added) if added else int(self._model.vocab_size())

    @property
    def bos_id(self) -> int:
        return int(self._model.bos_id())

    @property
    def eos_id(self) -> int:
        return int(self._model.eos_id())

    @cached_property
    def special_tokens(self) -> Mapping[str, SpecialToken]:
        ids = filter(self._model.is_control, range(self._model.vocab_size()))
        own = {self._model.id_to_piece(number): SpecialToken(number) for number in ids}
        return {**own, **self.config.added}

    def encode(self, text: str, follows: Follows = "nothing") -> list[int]:
        if self._prefixes and follows != "nothing":
            if not text.startswith(" "):
                return list(self._unprefixed.encode(text))
            text = text[1:]  # which the model puts there
        if self._space_ids is None or _SPACE not in text:
            return list(self._model.encode(text))
        first, *others = text.split(_SPACE)
        ids = list(self._model.encode(first))
        for part in others:
            ids += self._space_ids
            ids += self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        known = [number for number in ids if number not in self._added]
        return str(self._model.decode(known))

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(token.id for token in self.config.added.values())

    @cached_property
    def _unprefixed(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self._content + _WITHOUT_PREFIX)


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int, special_tokens: Sequence[str] = ()) -> None:
    """Train a byte-pair model with byte fallback on ``texts`` and write it to ``path``; deterministic.

    Args:
        special_tokens: that it has besides begin and end of document.

    Raises:
        UserError: if the texts are too few or too plain for ``vocab_size`` pieces.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            character_coverage=0.9999,
            user_defined_symbols=_OWN_PIECES,
            control_symbols=list(special_tokens),
            max_sentence_length=4 * _LONGEST_LINE,  # bytes; a character has at most four
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2] or "there is none"
        raise UserError(
            f"no tokenizer of {vocab_size} pieces can be trained on this text: {reason}",
            "text with enough different words; at least 300 pieces or so, as 256 of them are bytes",
            "change --vocab-size (data.raw.vocab_size), or give more text",
        ) from None
    path.write_bytes(model.getvalue())


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """Lines: a piece never spans a newline, which is a piece of its own."""
    for text in texts:
        for line in text.split("\n"):
            for start in range(0, len(line), _LONGEST_LINE):
                yield line[start : start + _LONGEST_LINE]
