"""Small tokenizers of both kinds for the tests of chat data, and conversations."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

TEXT = ["What is the answer to this question?", "The answer is 42.", "user system assistant Instruction Response"] * 9
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is 6 times 7? "},
    {"role": "assistant", "content": "42."},
    {"role": "user", "content": "And\n7 times 6?"},
    {"role": "assistant", "content": "The same:\n42"},
]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}\n"
    "{% if m.role == 'assistant' %}\n"
    "Bot:{% generation %}{{ m.content | trim }}{{ eos_token }}{% endgeneration %}\n"
    "{% else %}\n"
    "{{ m.role | capitalize }}: {{ m.content | trim }}<|im_end|>\n"
    "{% endif %}\n"
    "{% endfor %}"
)


def sentencepiece_model(path: Path, special: list[str], *, prefix: bool = False) -> Path:
    """A model with special tokens; ``prefix`` puts a space before every text, as Llama 2's does."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXT, "<|User|>:", "<|Bot|>:", "[INST] <<SYS>>"]), model_writer=model,
        vocab_size=420, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, control_symbols=special,
        add_dummy_prefix=prefix, remove_extra_whitespaces=False, normalization_rule_name="identity", minloglevel=2,
        allow_whitespace_only_pieces=True,
    )  # fmt: skip
    path.write_bytes(model.getvalue())
    return path


def bytes_tokenizer(folder: Path, template: str | None, **config: Any) -> Path:
    """A folder with a byte-level ``tokenizer.json`` of which id 0 is a letter's, and ``tokenizer_config.json``."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, show_progress=False)
    )
    stripping = AddedToken("<|end|>", rstrip=True, special=True)
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_start|>", "<|im_end|>", stripping])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = dict(tokenizer_class="PreTrainedTokenizerFast", bos_token="<s>", eos_token="</s>", **config)
    settings |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def metaspace_tokenizer(path: Path, scheme: str) -> Path:
    """As Llama's ``tokenizer.json``: a space before the first text, or (``Prepend``) before each."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if scheme == "Prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=150, special_tokens=["<unk>", "<s>", "</s>"]))
    tokenizer.save(str(path))
    return path


def lines(path: Path, records: list[Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
