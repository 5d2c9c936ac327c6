"""The tokenizer gives back what it was given, whatever it was trained on."""

import email
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evocore.data.sentencepiece_model import train_tokenizer
from evocore.data.tokenizer import Tokenizer
from evocore.errors import UserError

SOURCE = sorted(Path(email.__file__).parent.glob("*.py"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "a.model"
    train_tokenizer((file.read_text() for file in SOURCE[:8]), path, 600)
    return Tokenizer.load(path)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])) | st.text(" \n\t\r\u2581ab_=(日😀\x00\ufeff<s>0"))
@example("")
@example("  \u2581 \u2581\u2581x\u2581")
@example("<s></s><unk><0x41>")
@example("def f(x):\r\n\treturn x  \n\n\n        # 12345\n")
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer.encode(text)

    assert tokenizer.decode(ids) == text
    assert all(2 < token < tokenizer.vocab_size for token in ids)  # never unknown, never begin or end


def test_source_code_that_was_not_seen_comes_back_exactly(tokenizer):
    for file in SOURCE[8:]:
        text = file.read_bytes().decode()
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert len(ids) < 0.7 * len(text)


def test_begin_and_end_have_ids_and_no_text(tokenizer):
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (1, 2, 600)
    assert tokenizer.decode([1, *tokenizer.encode("ab\n"), 2]) == "ab\n"


def test_digits_and_newlines_stand_alone(tokenizer):
    assert tokenizer.encode("12345") == sum((tokenizer.encode(digit) for digit in "12345"), [])
    assert tokenizer.encode("\n\n\n") == tokenizer.encode("\n") * 3 and len(tokenizer.encode("\n")) == 1
    assert len(tokenizer.encode("        ")) == 1


def test_training_twice_gives_the_same_model(tmp_path):
    for name in ("a", "b"):
        train_tokenizer((file.read_text() for file in SOURCE[:2]), tmp_path / name, 400)

    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("texts", "size", "reason"),
    [
        (["hello world"], 5000, "Vocabulary size too high"),
        (["hello world"], 100, "Vocabulary size is smaller"),
        ([], 400, "there is none"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_text_is_refused(tmp_path, texts, size, reason):
    with pytest.raises(UserError, match=f"no tokenizer of {size} pieces can be trained on this text: {reason}"):
        train_tokenizer(texts, tmp_path / "a", size)
    assert not (tmp_path / "a").exists()


def test_a_missing_or_broken_model_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no tokenizer at .*none.model"):
        Tokenizer.load(tmp_path / "none.model")
    (tmp_path / "bad.model").write_text("hello")
    with pytest.raises(UserError, match="bad.model is no tokenizer"):
        Tokenizer.load(tmp_path / "bad.model")
