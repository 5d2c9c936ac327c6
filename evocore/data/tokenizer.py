"""Text to token ids and back, through a SentencePiece model; and training such a model on text or source code.

A model that is trained here gives every text back exactly, character for character: no normalisation, no prefix, runs
of spaces as pieces, newline, tab and carriage return as pieces of their own, and bytes for what is rare.
Ids: 0 unknown (never produced), 1 begin of document, 2 end of document.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sentencepiece

from evocore.errors import UserError

_SPACE = "\u2581"  # SentencePiece's spelling of a space, which is also a character of its own
_LONGEST_LINE = 4096  # characters in one training sentence: longer ones teach nothing and cost much
_OWN_PIECES = ["\n", "\t", "\r"]


class Tokenizer:
    """A SentencePiece model, trained here or elsewhere; see :meth:`load`."""

    def __init__(self, model: sentencepiece.SentencePieceProcessor) -> None:
        self._model = model
        # A model that puts a space before every text, as some from elsewhere do, cannot encode it in parts.
        prefixes = model.encode("a", out_type=str)[0].startswith(_SPACE)
        in_bytes = [model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]
        self._space_ids = None if prefixes or model.unk_id() in in_bytes else in_bytes

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """The tokenizer in the ``.model`` file ``path``.

        Raises:
            UserError: if the file is missing or is no SentencePiece model.
        """
        if not Path(path).is_file():
            raise UserError(
                f"there is no tokenizer at {path}",
                "a SentencePiece .model file",
                "mend data.tokenizer_path or --tokenizer, or train one: `evocore data tokenize --train-tokenizer`",
            )
        try:
            return cls(sentencepiece.SentencePieceProcessor(model_file=str(path)))
        except RuntimeError as error:
            raise UserError(
                f"{path} is no tokenizer ({error})",
                "a SentencePiece .model file",
                "copy the file again or name another one",
            ) from None

    @property
    def vocab_size(self) -> int:
        """Number of ids; all lie below it."""
        return int(self._model.vocab_size())

    @property
    def bos_id(self) -> int:
        """Id at the begin of a document; -1 if the model has none."""
        return int(self._model.bos_id())

    @property
    def eos_id(self) -> int:
        """Id at the end of a document; -1 if the model has none."""
        return int(self._model.eos_id())

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without begin and end of document."""
        if self._space_ids is None or _SPACE not in text:
            return list(self._model.encode(text))
        first, *others = text.split(_SPACE)
        ids = list(self._model.encode(first))
        for part in others:
            ids += self._space_ids
            ids += self._model.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ``ids``; begin and end of document vanish."""
        return str(self._model.decode(list(ids)))


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> None:
    """Train a byte-pair model with byte fallback on ``texts`` and write it to ``path``; deterministic.

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
