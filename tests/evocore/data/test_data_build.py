"""The trainer's door, with real configs."""

import pytest

from evocore.config import load_values
from evocore.data.build import build_train_loader, build_valid_sets
from evocore.errors import UserError


def config(**data):
    values = {"seq_len": 8, "micro_bsz": 2, "micro_num": 2, "total_steps": 5, "num_worker": 0, **data}
    model = {"num_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 100, "mlp_ratio": 2.0}
    return load_values({"data": values, "model": model, "model_type": "LLAMA2"}).config


def documents(count, start=1):
    return [[1 + (start + number * 7 + place) % 98 for place in range(3 + number % 9)] for number in range(count)]


def steps(loader, count):
    with loader:
        return [[batch.tokens_T.tolist() for batch in next(loader).micro_batches] for _ in range(count)]


@pytest.mark.parametrize("mode", [{}, {"pack_sample_into_one": True}, {"use_packed_dataset": False}])
def test_training_data_is_the_same_for_one_and_two_ranks(bin_file, tmp_path, mode):
    bin_file("train/en/a.bin", documents(60))
    bin_file("train/cn/b.bin", documents(60, start=50))
    folder = str(tmp_path / "train")

    one = steps(build_train_loader(config(train_folder=folder, micro_num=4, **mode), data_rank=0, data_size=1), 12)
    two = [
        steps(build_train_loader(config(train_folder=folder, **mode), data_rank=rank, data_size=2), 12)
        for rank in range(2)
    ]

    assert one == [first + second for first, second in zip(*two, strict=True)]
    assert all(len(batch) == 16 for step in one for batch in step)


def test_training_goes_on_from_a_state_with_another_number_of_ranks(bin_file, tmp_path):
    bin_file("train/a.bin", documents(90))
    folder = str(tmp_path / "train")
    whole = steps(build_train_loader(config(train_folder=folder, micro_num=4), data_rank=0, data_size=1), 9)
    loader = build_train_loader(config(train_folder=folder, num_worker=3), data_rank=1, data_size=2)
    steps_before = steps(loader, 4)

    rest = steps(
        build_train_loader(
            config(train_folder=folder, micro_num=4), data_rank=0, data_size=1, state=loader.state_dict()
        ),
        5,
    )

    assert [step[2:] for step in whole[:4]] == steps_before
    assert rest == whole[4:]


@pytest.mark.parametrize("changed", [{"seq_len": 4}, {"seed": 5}, {"min_length": 4}, {"pack_sample_into_one": True}])
def test_a_state_of_other_data_is_refused(bin_file, tmp_path, changed):
    bin_file("train/a.bin", documents(90))
    folder = str(tmp_path / "train")
    state = build_train_loader(config(train_folder=folder), data_rank=0, data_size=1).state_dict()

    build_train_loader(config(train_folder=folder), data_rank=0, data_size=1, state=state)
    with pytest.raises(UserError, match="the training data is not that of the checkpoint"):
        build_train_loader(config(train_folder=folder, **changed), data_rank=0, data_size=1, state=state)


def test_a_token_beyond_the_vocabulary_stops_the_run(bin_file, tmp_path):
    bin_file("train/a.bin", [[1, 2, 3, 100] * 20])

    loader = build_train_loader(config(train_folder=str(tmp_path / "train"), num_worker=2), data_rank=0, data_size=1)

    with loader, pytest.raises(UserError, match="token id 100, model.vocab_size is 100"):
        next(loader)


def test_missing_data_is_named_by_its_key(tmp_path):
    with pytest.raises(UserError, match="data.train_folder: the folder"):
        build_train_loader(config(train_folder=str(tmp_path / "no")), data_rank=0, data_size=1)
    with pytest.raises(UserError, match="data.valid_folder: there is no .bin file"):
        build_valid_sets(config(train_folder="x", valid_folder=str(tmp_path)), data_rank=0, data_size=1)


def test_random_data_needs_no_folder_and_repeats_itself():
    def first(rank, seed=1):
        return steps(build_train_loader(config(seed=seed), data_rank=rank, data_size=2), 3)

    assert first(0) == first(0)
    assert first(0) != first(1) and first(0) != first(0, seed=2)
    assert all(1 <= token < 100 for step in first(0) for batch in step for token in batch)
    (name,) = build_valid_sets(config(), data_rank=0, data_size=1)
    assert name == "random"


def test_random_lengths_make_spans_shorter_than_seq_len():
    with build_train_loader(config(fixed_random_dataset_seqlen=False), data_rank=0, data_size=1) as loader:
        spans = [batch.cu_seqlens for _ in range(5) for batch in next(loader).micro_batches]
    with build_train_loader(config(), data_rank=0, data_size=1) as loader:
        fixed = [batch.cu_seqlens for _ in range(5) for batch in next(loader).micro_batches]

    assert len(set(spans)) > 5
    assert set(fixed) == {(0, 8, 16)}


def test_validation_sets_are_the_sub_folders(bin_file, tmp_path):
    for name in ("wiki/a.bin", "wiki/deep/b.bin", "books/c.bin", "d.bin"):
        bin_file(f"valid/{name}", documents(5))

    sets = build_valid_sets(config(train_folder="x", valid_folder=str(tmp_path / "valid")), data_rank=0, data_size=1)

    assert sorted(sets) == ["books", "valid", "wiki"]
    assert {name: tokens(one) for name, one in sets.items()} == {
        "books": sum(documents(5), []),
        "valid": sum(documents(5), []),
        "wiki": sum(documents(5), []) * 2,
    }


def test_no_validation_folder_means_no_validation_on_real_data():
    assert build_valid_sets(config(train_folder="x"), data_rank=0, data_size=1) == {}


def tokens(batches):
    """All tokens but padding."""
    return [token for batch in batches for token in batch.tokens_T.tolist() if token]


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_validation_covers_every_token_once_in_step_with_the_other_ranks(bin_file, tmp_path, size):
    bin_file("valid/a.bin", documents(23))
    settings = config(train_folder="x", valid_folder=str(tmp_path / "valid"))

    ranks = [build_valid_sets(settings, data_rank=rank, data_size=size)["valid"] for rank in range(size)]

    batches = [list(one) for one in ranks]
    assert len({len(one) for one in batches}) == 1
    in_order = [batch for row in zip(*batches, strict=True) for batch in row]
    assert tokens(in_order) == sum(documents(23), [])
    assert sum(int((batch.labels_T != -100).sum()) for batch in in_order) == sum(len(d) - 1 for d in documents(23))
    assert tokens(ranks[0]) == tokens(batches[0])  # a second pass is the same


def test_validation_can_be_bounded(bin_file, tmp_path):
    bin_file("valid/a.bin", documents(23))
    settings = config(train_folder="x", valid_folder=str(tmp_path / "valid"))

    ranks = [build_valid_sets(settings, data_rank=rank, data_size=2, max_packs=3)["valid"] for rank in range(2)]

    assert [len(list(one)) for one in ranks] == [2, 2]
    in_order = [batch for row in zip(*ranks, strict=True) for batch in row]
    assert tokens(in_order) == sum(documents(23), [])[:48]
