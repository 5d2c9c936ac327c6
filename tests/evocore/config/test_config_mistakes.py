"""Mistakes in a config: named with key, value, source and the way out, all at once."""

from __future__ import annotations

import re

import pytest

from evocore.config import load_values, schema_keys
from evocore.errors import UserError


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.num_layer", "model.num_layers"),
        ("data.seqlen", "data.seq_len"),
        ("hybrid_zero_optimizer.clip_grad", "hybrid_zero_optimizer.clip_grad_norm"),
        ("parallel.tensor.sise", "parallel.tensor.size"),
        ("model.lr", "adam.lr"),
        ("data.num_layers", "model.num_layers"),
        ("optimizer", "hybrid_zero_optimizer"),
        ("SEQ_LEN", "data.seq_len"),
        ("ckpt.load_ckpt_info.contents", "ckpt.load_ckpt_info.content"),
    ],
)
def test_an_unknown_key_suggests_the_one_that_was_meant(load, key, meant):
    with pytest.raises(UserError) as caught:
        load("ckpt.load_ckpt_info.path=x", f"{key}=3")

    assert caught.value.wrong == f"{key}=3 (--set): there is no such key"
    assert caught.value.expected.startswith(f"{meant} (")


def test_an_unknown_key_far_from_all_others_points_to_the_list(load):
    with pytest.raises(UserError, match="evocore config show --describe"):
        load("data.qqqqqqqq=3")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.seq_len='2048'", "a valid integer"),
        ("data.seq_len=2048.0", "a valid integer"),
        ("data.seq_len=0", "greater than 0"),
        ("model.num_layers=True", "a valid integer"),
        ("cudnn_benchmark=1", "a valid boolean"),
        ("adam.lr='fast'", "a valid number"),
        ("adam.adam_beta1=1.0", "less than 1"),
        ("model.checkpoint=1.5", "less than or equal to 1"),
        ("parallel.tensor.mode=tp", "'mtp', 'msp', 'fsp' or 'isp'"),
        ("model.dtype=torch.int8", "'auto', 'torch.float16', 'torch.bfloat16', 'torch.float32' or 'torch.tf32'"),
        ("adam.no_decay=['norm','head']", "'norm', 'bias' or 'embedding' at [1]"),
        ("kernels={'attention':1}", "a valid string"),
        ("parallel.tensor=big", "a dict with some of: size, mode"),
        ("adam.lr=1e999", "a finite number"),
    ],
)
def test_a_wrong_value_says_what_fits(load, setting, expected):
    key, value = setting.split("=", 1)

    with pytest.raises(UserError) as caught:
        load(setting)

    assert caught.value.wrong.startswith(f"{key}=")
    assert "(--set) does not fit" in caught.value.wrong
    assert caught.value.expected == expected


def test_all_mistakes_come_at_once_and_none_twice():
    with pytest.raises(UserError) as caught:
        load_values(
            {
                "data": {"seq_len": "64", "micro_bsz": 2},
                "model": {"num_layers": 2, "hidden_size": 32, "vocab_size": 128, "mlp_ratio": 2.0, "hiden": 1},
                "model_typ": "LLAMA2",
            },
            name="mine.py",
        )

    lines = [line.strip() for line in caught.value.wrong.splitlines()]
    assert lines[0] == "mine.py: 5 mistakes"
    assert {line.partition(". ")[2] for line in lines if line[0].isdigit()} == {
        "data.seq_len='64' (mine.py) does not fit",
        "data.total_steps is missing in mine.py",
        "model.num_attention_heads is missing in mine.py",
        "model.hiden=1 (mine.py): there is no such key",
        "model_typ='LLAMA2' (mine.py): there is no such key",
    }
    assert "expected: model.hidden_size (Width of the residual stream.)" in lines


def test_a_missing_block_shows_what_belongs_in_it():
    with pytest.raises(UserError) as caught:
        load_values({"data": {"seq_len": 8, "micro_bsz": 1, "total_steps": 1}})

    assert caught.value.wrong == "model is missing in values"
    assert caught.value.expected == (
        "model=dict(num_layers=..., hidden_size=..., num_attention_heads=..., vocab_size=..., mlp_ratio=...)"
    )


def test_a_block_that_is_no_dict_is_one_mistake():
    with pytest.raises(UserError) as caught:
        load_values(
            {
                "data": 5,
                "model": {
                    "num_layers": 2,
                    "hidden_size": 32,
                    "num_attention_heads": 4,
                    "vocab_size": 128,
                    "mlp_ratio": 2.0,
                },
            }
        )

    assert caught.value.wrong == "data=5 (values) does not fit"
    assert caught.value.expected.startswith("a dict with some of: type, seq_len, micro_bsz")


HF = {"cfg": "transformers", "cfg_cls": "LlamaConfig", "mod": "transformers", "mod_cls": "LlamaForCausalLM"}


def test_a_class_of_transformers_brings_its_sizes():
    hf = HF | {"cfg_extra_kwargs": {"hidden_size": 96, "num_attention_heads": 6, "num_hidden_layers": 3}}
    data = {"seq_len": 8, "micro_bsz": 1, "total_steps": 1}
    loaded = load_values({"data": data, "model": {"hidden_size": 7, "rope_base": 5}, "hf": hf})

    model = loaded.config.model
    assert (loaded.config.model_type, model.hidden_size, model.num_layers, model.head_dim) == ("hf", 96, 3, 16)
    assert loaded.sources["model.hidden_size"] == "derived"
    assert "model.hidden_size=7 (values) is overwritten with 96: what hf names" in loaded.notes
    assert "model.rope_base: without effect, a class of transformers has its own config" in loaded.notes


@pytest.mark.parametrize(
    ("hf", "told"),
    [
        ({"path": "nowhere"}, "hf.path='nowhere': there is no config.json"),
        ({"path": "x", "mod": "transformers"}, "does not name a model"),
        (HF | {"cfg": "os", "cfg_cls": "system"}, "hf.cfg='os' is no module of transformers"),
        (HF | {"cfg_cls": "LamaConfig"}, "hf.cfg_cls='LamaConfig': there is no such class in transformers"),
    ],
)
def test_a_class_that_is_none_of_transformers_is_refused(hf, told):
    with pytest.raises(UserError, match=re.escape(told)):
        load_values({"data": {"seq_len": 8, "micro_bsz": 1, "total_steps": 1}, "hf": hf})


def test_every_key_has_a_description_and_a_readable_type():
    keys = schema_keys()

    assert len(keys) > 250
    assert [key.name for key in keys.values() if not key.description.endswith(".")] == []
    assert [key.name for key in keys.values() if "Annotated" in key.type or "FieldInfo" in key.type] == []
    assert keys["parallel.tensor.mode"].type == "'mtp' | 'msp' | 'fsp' | 'isp'"
    assert keys["ckpt.keep_last"].type == "int | None"
    assert keys["generation.eos_id"].type == "int | list[int] | None"
