"""Making datasets: what is written, that it does not depend on the workers, and that nothing is left half done."""

import email
import json
from pathlib import Path

import numpy as np
import pytest

from evocore.data import encoding
from evocore.data import tokenize as module
from evocore.data.documents import Fragment
from evocore.data.encoding import Recipe
from evocore.data.record_writer import Record, RecordWriter
from evocore.data.records import TokenizedFile
from evocore.data.sentencepiece_model import train_tokenizer
from evocore.data.sources import find_sources
from evocore.data.tokenize import Destination, Written, tokenize
from evocore.data.tokenized import TokenizedDocuments, find_bins
from evocore.data.tokenizer import Tokenizer
from evocore.errors import UserError

STDLIB = Path(email.__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "a.model"
    train_tokenizer([file.read_text() for file in sorted(STDLIB.glob("*.py"))[:6]], path, 500)
    return path


def place(root):
    return Destination(root / "train", root / "valid", root / "tokenizer.model")


def make(out, sources, model, workers=1, suffixes=(".py",), **recipe):
    sets = find_sources(sources, suffixes)
    return tokenize(sets, Recipe(**recipe), place(out), tokenizer=model, vocab_size=300, workers=workers)


def texts(folder, model):
    """Every document below a folder, by file, as text with its first and last id."""
    tokenizer = Tokenizer.load(model)
    found = []
    for path in find_bins(folder):
        documents = TokenizedDocuments([path], folder)
        for number, length in enumerate(documents.lengths.tolist()):
            ids = documents.read([Fragment(number, 0, length)])[0].tolist()
            found.append((ids[0], tokenizer.decode(ids), ids[-1]))
    return found


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_becomes_one_document(tmp_path, model):
    files = sorted(STDLIB.rglob("*.py"), key=lambda path: path.relative_to(STDLIB).as_posix())

    written = make(tmp_path, [STDLIB], model)

    assert texts(tmp_path / "train", model) == [
        (1, file.read_bytes().decode(), 2) for file in files if file.stat().st_size
    ]
    assert list(tree(tmp_path)) and sorted(tree(tmp_path)) == [
        "tokenizer.model",
        "train/email/part-00000.bin",
        "train/email/part-00000.bin.meta",
    ]
    assert written == Written(len(texts(tmp_path / "train", model)), written.train_tokens, 0, 0, 0, 500)
    assert written.train_tokens == TokenizedFile(tmp_path / "train/email/part-00000.bin").counts.sum()
    assert np.load(tmp_path / "train/email/part-00000.bin.meta").dtype == np.int64
    assert (tmp_path / "tokenizer.model").read_bytes() == model.read_bytes()


def test_the_result_does_not_depend_on_the_workers(tmp_path, model, monkeypatch):
    monkeypatch.setattr(module, "_BYTES_PER_WORKER", 1)
    monkeypatch.setattr(encoding, "_UNIT_BYTES", 20_000)
    lines = tmp_path / "lines.jsonl"
    lines.write_text("".join(json.dumps({"text": f"line {number} " * 9}) + "\n" for number in range(600)))

    for workers in (1, 2):
        make(tmp_path / f"{workers}", [STDLIB, lines], model, workers=workers, valid_fraction=0.2)

    assert tree(tmp_path / "1") == tree(tmp_path / "2")
    assert {name.split("/")[1] for name in tree(tmp_path / "1") if "/" in name} == {"email", "lines"}


def test_held_out_documents_are_the_same_wherever_the_text_lies(tmp_path, model):
    for root in ("a", "b/c"):
        for number in range(60):
            (tmp_path / root / "text").mkdir(parents=True, exist_ok=True)
            (tmp_path / root / f"text/{number}.py").write_text(f"x{number}")
    (tmp_path / "b/c/text/new.py").write_text("new")

    for root in ("a", "b/c"):
        make(tmp_path / root / "out", [tmp_path / root / "text"], model, valid_fraction=0.2)

    held_out, more = (set(texts(tmp_path / root / "out/valid", model)) for root in ("a", "b/c"))
    assert 3 <= len(held_out) <= 25
    assert held_out | {(1, "new", 2)} == more | {(1, "new", 2)}
    train = texts(tmp_path / "a/out/train", model)
    assert sorted([*train, *held_out]) == sorted((1, f"x{number}", 2) for number in range(60))


def test_lines_are_held_out_one_by_one_and_at_least_one_file_is(tmp_path, model):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"body": "line {number}"}}\n' for number in range(100)))
    (tmp_path / "few").mkdir()
    for number in range(3):
        (tmp_path / f"few/{number}.py").write_text("x")

    make(tmp_path / "lines", [tmp_path / "a.jsonl"], model, field="body", valid_fraction=0.3)
    make(tmp_path / "files", [tmp_path / "few"], model, valid_fraction=0.0001)

    parts = [texts(tmp_path / "lines" / part, model) for part in ("train", "valid")]
    assert 15 <= len(parts[1]) <= 45
    assert sorted(sum(parts, [])) == sorted((1, f"line {number}", 2) for number in range(100))
    assert [len(texts(tmp_path / "files" / part, model)) for part in ("train", "valid")] == [2, 1]


def test_begin_and_end_can_be_left_away(tmp_path, model):
    (tmp_path / "a.txt").write_text("xy")
    tokenizer = Tokenizer.load(model)

    make(tmp_path / "bare", [tmp_path / "a.txt"], model, append_bos=False, append_eos=False)
    make(tmp_path / "end", [tmp_path / "a.txt"], model, append_bos=False)

    for name, ids in (("bare", tokenizer.encode("xy")), ("end", [*tokenizer.encode("xy"), 2])):
        (line,) = (tmp_path / name / "train/a/part-00000.bin").read_text().splitlines()
        assert json.loads(line) == {"tokens": ids}


def test_a_tokenizer_is_trained_on_all_that_is_not_held_out(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    for number in range(40):
        (tmp_path / f"text/{number}.txt").write_text(f"{number} words of different kinds here, " * 5)
    (tmp_path / "text/lines.jsonl").write_text("".join(f'"line {number}"\n' for number in range(40)))
    given = []

    def train(texts, path, vocab_size, special_tokens):
        given.extend(texts)
        train_tokenizer(given, path, vocab_size, special_tokens)

    monkeypatch.setattr(module, "train_tokenizer", train)

    written = make(tmp_path, [tmp_path / "text"], None, suffixes=[".txt", ".jsonl"], valid_fraction=0.1)

    model = tmp_path / "tokenizer.model"
    assert sorted(given) == sorted(text for _, text, _ in texts(tmp_path / "train", model))
    assert written.vocab_size == Tokenizer.load(model).vocab_size == 300
    assert written.valid_samples == 80 - len(given) > 0


def test_text_that_is_no_utf8_is_left_out_and_counted(tmp_path, model):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.py").write_bytes(b"\xff\xfe")
    (tmp_path / "s/b.py").write_text("fine")

    written = make(tmp_path / "out", [tmp_path / "s"], model)

    assert (written.train_samples, written.unreadable_files) == (1, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_mistake_nothing_is_left(tmp_path, model, workers, monkeypatch):
    monkeypatch.setattr(module, "_BYTES_PER_WORKER", 1)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "x"}\n{"txt": "x"}\n')

    with pytest.raises(UserError, match="bad.jsonl, line 2 has no text under 'text', but 'txt'"):
        make(tmp_path / "out", [bad], model, workers=workers)
    assert tree(tmp_path / "out") == {}


def test_nothing_is_overwritten(tmp_path, model):
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "b.txt").write_text("second " * 300)
    make(tmp_path / "out", [tmp_path / "a.txt"], model)
    before = tree(tmp_path / "out")

    with pytest.raises(UserError, match="train/a exists already"):
        make(tmp_path / "out", [tmp_path / "a.txt"], model)
    with pytest.raises(UserError, match="tokenizer.model exists already"):
        make(tmp_path / "out", [tmp_path / "b.txt"], None)
    assert tree(tmp_path / "out") == before

    make(tmp_path / "out", [tmp_path / "b.txt"], tmp_path / "out/tokenizer.model")
    assert before.items() < tree(tmp_path / "out").items()


def test_large_datasets_are_written_in_parts(tmp_path):
    with RecordWriter(tmp_path / "x", part_bytes=52) as writer:
        for number in range(1, 6):
            writer.append(Record.of(range(1, number + 1)))

    files = [TokenizedFile(path) for path in find_bins(tmp_path)]
    assert [file.path.name for file in files] == ["part-00000.bin", "part-00001.bin", "part-00002.bin"]
    assert [file.counts.tolist() for file in files] == [[1, 2], [3, 4], [5]]
    assert (writer.samples, writer.tokens) == (5, 15)
