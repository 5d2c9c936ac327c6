"""--set, flags, derived values, and the resolved config on disk."""

from __future__ import annotations

import json

import pytest
from config_samples import smallest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.config import config_from_values, leaves, load_config, load_resolved, load_values, save_resolved
from evocore.errors import UserError


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**9), st.floats(0, 1e6), st.booleans(), st.text(st.characters(exclude_categories=["C"])))
def test_any_value_round_trips_through_set(number, rate, flag, text):
    sets = [f"data.total_steps={number}", f"adam.lr={rate!r}", f"enable_tb={flag}", f"JOB_NAME={text!r}"]

    config = load_values(smallest(), sets).config

    assert (config.data.total_steps, config.adam.lr, config.enable_tb, config.JOB_NAME) == (number, rate, flag, text)


@pytest.mark.parametrize(
    ("setting", "key", "value"),
    [
        ("model.dtype=torch.float32", "model.dtype", "torch.float32"),
        ("backend=cpu", "backend", "cpu"),
        ("JOB_NAME=a=b", "JOB_NAME", "a=b"),
        ("data.train_folder=None", "data.train_folder", None),
        ("adam.no_decay=['norm']", "adam.no_decay", ["norm"]),
        ("kernels.attention=triton", "kernels", {"rms_norm": "native", "attention": "triton"}),
        ("kernels={'attention': 'triton'}", "kernels", {"rms_norm": "native", "attention": "triton"}),
        ("data.raw=None", "data.raw", None),
        ("parallel.tensor={'size': 2}", "parallel.tensor.mode", "fsp"),
        ("parallel.tensor=dict(size=2, mode='msp')", "parallel.tensor.mode", "msp"),
        ("parallel=dict(tensor=dict(size=2, mode='isp'))", "parallel.tensor.mode", "isp"),
        ("JOB_NAME=list(a=1)", "JOB_NAME", "list(a=1)"),
    ],
)
def test_set_takes_literals_and_text_and_merges_dicts(setting, key, value):
    values = smallest() | {"kernels": {"rms_norm": "native"}, "parallel": {"tensor": {"mode": "fsp"}}}
    values["data"] |= {"raw": {"sources": ["x"]}, "train_folder": "t"}

    assert dict(leaves(load_values(values, [setting]).config))[key] == value


def test_a_later_set_wins_and_a_flag_wins_over_all(write):
    path = write("mine.py", "\n".join(f"{name} = {value!r}" for name, value in smallest().items()))

    loaded = load_config(path, ["adam.lr=1.0", "seed=1", "adam.lr=2.0"], {"seed": 3, "backend": None})

    assert (loaded.config.adam.lr, loaded.config.seed, loaded.config.backend) == (2.0, 3, None)
    assert loaded.sources["seed"] == "command line"


@pytest.mark.parametrize("text", ["adam.lr", "=3", "adam..lr=3", ""])
def test_a_set_without_key_or_value_is_refused(load, text):
    with pytest.raises(UserError, match="KEY=VALUE"):
        load(text)


def test_derived_values_follow_their_inputs(load):
    config = load("data.seq_len=128", "adam.adam_beta2=0.9", "adam.adam_beta2_c=0.8", "data.micro_num=3").config

    assert config.data.packed_length == 256
    assert (config.data.batch_size, config.data.gradient_accumulation, config.data.valid_micro_num) == (3, 3, 3)
    assert config.lr_scheduler.total_steps == config.data.total_steps == 10
    assert (config.beta2_scheduler.init_beta2, config.beta2_scheduler.c) == (0.9, 0.8)
    assert (config.model.head_dim, config.model.num_kv_attention_heads) == (8, 4)
    assert config.data.type == "random"


def test_given_values_are_kept_where_they_may_differ(load):
    config = load(
        "model.head_dim=64",
        "model.num_kv_attention_heads=2",
        "lr_scheduler.total_steps=99",
        "data.valid_micro_num=7",
        "data.train_folder=somewhere",
    ).config

    assert (config.model.head_dim, config.model.num_kv_attention_heads) == (64, 2)
    assert (config.lr_scheduler.total_steps, config.data.valid_micro_num) == (99, 7)
    assert config.data.type == "tokenized"


def test_overwritten_values_are_noted(load):
    loaded = load(
        "data.packed_length=7", "data.batch_size=9", "data.diag_outlier_ratio=0.5", "parallel.pipeline.mode=zbv"
    )

    assert loaded.config.data.packed_length == 128
    assert loaded.config.model.num_chunks == 2
    assert "data.packed_length=7 (--set) is overwritten with 128: data.seq_len * data.micro_bsz" in loaded.notes
    assert "data.batch_size=9 (--set) is overwritten with 4: data.micro_num" in loaded.notes
    assert "data.diag_outlier_ratio=0.5 (--set) is overwritten with 1.0: at least 1" in loaded.notes
    assert loaded.sources["data.packed_length"] == loaded.sources["data.diag_outlier_ratio"] == "derived"


def test_infinite_intervals_mean_never(load):
    values = smallest() | {"ckpt": {"checkpoint_every": 5, "oss_snapshot_freq": float("inf")}}

    assert load_values(values).config.ckpt.oss_snapshot_freq is None


def test_keys_without_effect_are_noted_once_per_reason(load):
    notes = load("hybrid_zero_optimizer.use_split_tensor_optim=True", "hybrid_zero_optimizer.all_gather_size=8").notes

    assert (
        notes.count(
            "hybrid_zero_optimizer.use_split_tensor_optim, hybrid_zero_optimizer.all_gather_size: "
            "without effect, gradients and parameters travel in buckets of reduce_bucket_size"
        )
        == 1
    )
    assert not any("without effect" in note for note in load().notes)


def test_a_config_is_not_changed_after_loading(load):
    with pytest.raises(ValueError, match="frozen"):
        load().config.adam.lr = 1.0


def test_a_resolved_config_comes_back_equal(load, tmp_path):
    loaded = load("generation.eos_id=[2, 0]", "data.raw.sources=['a']", "kernels.attention=reference")

    save_resolved(loaded, tmp_path / "config.json")

    content = json.loads((tmp_path / "config.json").read_text())
    assert set(content) == {"values", "sources"}
    assert content["values"]["data"]["packed_length"] == 128
    assert content["sources"]["data.packed_length"] == "derived"
    assert content["sources"].keys() == dict(leaves(loaded.config)).keys()
    assert load_resolved(tmp_path / "config.json") == loaded.config
    assert config_from_values(loaded.config.model_dump(mode="json")) == loaded.config


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "is no JSON"),
        ("[]", 'has no "values"'),
        ('{"values": 3}', 'has no "values"'),
        ('{"values": {"data": {}, "nonsense": 1}}', "nonsense=1"),
    ],
)
def test_a_damaged_resolved_config_is_refused(tmp_path, text, wrong):
    (tmp_path / "config.json").write_text(text)

    with pytest.raises(UserError, match=wrong):
        load_resolved(tmp_path / "config.json")


def test_an_absent_resolved_config_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        load_resolved(tmp_path / "config.json")
