"""``data.raw``: made once, made again when it has to be, and nothing of the user's touched."""

import json

import pytest

from evocore.config import load_values
from evocore.data import raw as module
from evocore.data.raw import prepare_raw
from evocore.errors import UserError


@pytest.fixture
def text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number}.py").write_text(
            f"def function_{number}(argument):\n    return argument + {number}\n" * 5
        )
    return folder


def config(tmp_path, text, raw=(), **data):
    options = {"sources": [str(text)], "vocab_size": 330, "valid_fraction": 0.2, "num_workers": 1}
    values = {
        "seq_len": 8,
        "micro_bsz": 1,
        "total_steps": 5,
        "train_folder": str(tmp_path / "train"),
        "valid_folder": str(tmp_path / "valid"),
        "tokenizer_path": str(tmp_path / "tok.model"),
        "raw": None if raw is None else {**options, **dict(raw)},
        **data,
    }
    model = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 400, "mlp_ratio": 2.0}
    return load_values({"data": values, "model": model, "model_type": "LLAMA2"}).config


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def samples(folder):
    return sum(path.read_bytes().count(b"\n") for path in folder.rglob("*.bin"))


def test_text_becomes_a_dataset_once(tmp_path, text):
    settings = config(tmp_path, text)

    (note,) = prepare_raw(settings)
    made = tree(tmp_path)
    (again,) = prepare_raw(settings)

    assert note == again
    assert tree(tmp_path) == made
    assert "330 pieces" in note and f"in {samples(tmp_path / 'train')} documents to train on" in note
    assert samples(tmp_path / "train") + samples(tmp_path / "valid") == 30
    assert samples(tmp_path / "valid") > 0


def test_without_raw_there_is_nothing_to_do(tmp_path, text):
    assert prepare_raw(config(tmp_path, text, raw=None)) == []
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 340), ("valid_fraction", 0.5), ("exclude", ["1*"])])
def test_a_changed_setting_makes_everything_anew(tmp_path, text, key, value):
    prepare_raw(config(tmp_path, text))
    before = tree(tmp_path / "train")

    notes = prepare_raw(config(tmp_path, text, raw={key: value}))

    assert f"is made anew, as {key} changed" in notes[0]
    assert tree(tmp_path / "train") != before
    assert prepare_raw(config(tmp_path, text, raw={key: value})) == notes[1:]


def test_the_number_of_workers_is_no_reason_to_begin_again(tmp_path, text):
    prepare_raw(config(tmp_path, text))
    before = tree(tmp_path)

    prepare_raw(config(tmp_path, text, raw={"num_workers": 2}))

    assert tree(tmp_path) == before


@pytest.mark.parametrize("stage", ["before", "after"])
def test_a_killed_preparation_is_made_anew(tmp_path, text, stage, monkeypatch):
    whole = module.tokenize

    def killed(*arguments, **options):
        if stage == "after":
            whole(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "tokenize", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_raw(config(tmp_path, text))
    monkeypatch.undo()

    notes = prepare_raw(config(tmp_path, text))

    assert "as the last preparation was not completed" in notes[0]
    assert samples(tmp_path / "train") + samples(tmp_path / "valid") == 30
    assert len(prepare_raw(config(tmp_path, text))) == 1


def test_a_part_that_went_missing_is_made_anew(tmp_path, text):
    prepare_raw(config(tmp_path, text))
    (tmp_path / "tok.model").unlink()

    assert "as a part of it is missing" in prepare_raw(config(tmp_path, text))[0]
    assert (tmp_path / "tok.model").exists()


def test_an_existing_tokenizer_is_used_and_kept(tmp_path, text):
    prepare_raw(config(tmp_path, text))
    model = (tmp_path / "tok.model").read_bytes()
    other = {"train_folder": str(tmp_path / "t2"), "valid_folder": None}

    (note,) = prepare_raw(config(tmp_path, text, raw={"vocab_size": 350}, **other))
    prepare_raw(config(tmp_path, text, raw={"vocab_size": 360}, **other))

    assert "330 pieces" in note
    assert (tmp_path / "tok.model").read_bytes() == model
    assert samples(tmp_path / "t2") == 30  # nothing is held out without a place for it


def test_the_users_own_data_is_left_alone(tmp_path, text, bin_file):
    bin_file("train/en/a.bin", [[1, 2]])
    before = tree(tmp_path)

    (note,) = prepare_raw(config(tmp_path, text))

    assert "holds a dataset already" in note
    assert tree(tmp_path) == before


def test_a_users_validation_set_of_the_same_name_survives(tmp_path, text, bin_file):
    bin_file("valid/text/a.bin", [[1, 2]])
    before = tree(tmp_path)

    for _ in range(2):
        with pytest.raises(UserError, match="valid/text exists already"):
            prepare_raw(config(tmp_path, text))
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "damage",
    [
        {"sets": ["../../precious"]},
        {"sets": ["/precious"]},
        {"sets": [".."]},
        {"sets": [""]},
        {"sets": 5},
        {"sets": [3]},
        {"settings": []},
        {"settings": {}},
        {"written": {"train_tokens": 1}},
        {"more": 1},
    ],
)
def test_a_damaged_record_is_refused_and_has_nothing_deleted(tmp_path, text, damage):
    prepare_raw(config(tmp_path, text))
    record = tmp_path / "train/evocore-raw.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **damage}))
    before = tree(tmp_path)

    with pytest.raises(UserError, match="evocore-raw.json is damaged"):
        prepare_raw(config(tmp_path, text, raw={"vocab_size": 340}))
    assert tree(tmp_path) == before


def test_a_preparation_that_is_killed_while_it_deletes_is_made_anew(tmp_path, text, monkeypatch):
    prepare_raw(config(tmp_path, text))

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_raw(config(tmp_path, text, raw={"vocab_size": 340}))
    monkeypatch.undo()

    assert "as the last preparation was not completed" in prepare_raw(config(tmp_path, text))[0]


def test_a_path_may_be_spelt_with_a_dot(tmp_path, text):
    dotted = {"tokenizer_path": f"{tmp_path}/./tok.model"}
    prepare_raw(config(tmp_path, text, **dotted))

    notes = prepare_raw(config(tmp_path, text, raw={"vocab_size": 340}, **dotted))

    assert "340 pieces" in notes[1]


def test_held_out_text_may_not_lie_in_the_training_folder(tmp_path, text):
    with pytest.raises(UserError, match="what is held out would be trained on"):
        prepare_raw(config(tmp_path, text, valid_folder=str(tmp_path / "train/valid")))


@pytest.mark.parametrize("key", ["train_folder", "tokenizer_path"])
def test_a_missing_place_is_named(tmp_path, text, key):
    with pytest.raises(UserError, match=f"data.raw is given, but data.{key} is not"):
        prepare_raw(config(tmp_path, text, **{key: None}))
