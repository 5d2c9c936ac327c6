"""``--shrink``: every config of ours trains its three steps on this CPU, under the layout that it names."""

import math
from pathlib import Path

import configs_shrunk
import pytest

from evocore.cli.main import main
from evocore.config import check, load_config, load_values
from evocore.config.shrink import shrink
from evocore.errors import UserError
from evocore.parallel.layout import Layout
from evocore.plugins.manager import load_plugins
from evocore.released import Catalogue

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))
PROCESSES = 4


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_a_config_trains_three_steps_when_shrunk(file, ranks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no data folder of a config is
    before = load_config(file).config
    needed = Layout.smallest(before).topology.sizes.world
    world = PROCESSES if needed > 1 or before.model.num_experts > 1 else 1
    after = configs_shrunk.small(file, world).config

    if world == 1:
        steps, validations = configs_shrunk.losses(file, str(tmp_path))
    else:
        steps, validations = ranks(world, configs_shrunk.losses, file, str(tmp_path), timeout=120)[0]

    assert len(steps) == 3 and bool(validations) == (before.data.valid_every > 0)
    assert all(0.9 < loss / math.log(after.model.vocab_size) < 1.5 for loss in steps), steps
    if needed <= world:
        assert after.parallel == before.parallel
    assert _proportions(after) == _proportions(before)


def _proportions(config):
    model, parallel = config.model, config.parallel
    return (
        model.num_attention_heads // model.num_kv_attention_heads,
        model.head_dim * model.num_attention_heads / model.hidden_size,
        model.num_experts > 1,
        parallel.tensor.mode,
        parallel.pipeline.size > 1,
        parallel.tensor.size > 1,
    )


LAYOUTS = {
    "tensor and pipeline": (dict(tensor=dict(size=8), pipeline=dict(size=4)), 4, dict(tensor=2, pipeline=2)),
    "odd": (dict(tensor=dict(size=6), pipeline=dict(size=3)), 6, dict(tensor=2, pipeline=3)),
    "nothing left": (dict(tensor=dict(size=8), pipeline=dict(size=4)), 1, dict(tensor=1, pipeline=1)),
    "kept": (dict(tensor=dict(size=2), zero1=dict(size=4)), 8, dict(tensor=2, zero1=4)),
    "zero": (dict(tensor=dict(size=2), zero1=dict(size=4)), 4, dict(tensor=2, zero1=2)),
    "isp": (dict(tensor=dict(size=4, mode="isp"), weight=dict(size=16)), 4, dict(tensor=4, weight=4)),
    "experts": (dict(expert=dict(size=16), tensor=dict(size=4)), 8, dict(tensor=4, expert=2)),
    "all experts": (dict(expert=dict(size=-1), tensor=dict(size=2)), 12, dict(tensor=2, expert=-1)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_sizes_become_divisors_that_fit_and_make_a_config_that_runs(name):
    parallel, world, expected = LAYOUTS[name]
    values = dict(
        model_type="X",
        data=dict(seq_len=4096, micro_bsz=2, micro_num=8, total_steps=100, rampup_batch_size="2 2 4"),
        model=dict(
            num_layers=61, hidden_size=7168, num_attention_heads=48, num_kv_attention_heads=12, mlp_ratio=2.6875,
            vocab_size=129024, first_k_dense_replace=3, moe_intermediate_size=2048, checkpoint=0.1,
            num_experts=256 if "experts" in name else 1, top_k=8, moe_type="Dropless",
            moe_layer_kwargs=dict(num_expert_groups=8, top_k_groups=4) if "experts" in name else {},
        ),
        ckpt=dict(checkpoint_every=10, load_ckpt_info=dict(path="/real/run"), save_ckpt_folder="/real/run"),
        parallel=parallel,
    )  # fmt: skip

    small = shrink(load_values(values), world)

    assert check(small.config, world_size=world, families={"X"}) == []
    assert {key: getattr(small.config.parallel, key).size for key in expected} == expected
    assert small.config.ckpt.load_ckpt_info is None and not small.config.ckpt.enable_save_ckpt
    assert small.config.model.num_attention_heads == 4 * small.config.model.num_kv_attention_heads
    assert small.sources["model.num_layers"] == "--shrink" and "model.num_layers 61 -> " in small.notes[-1]


def test_two_dimensional_sequences_keep_their_heads_longest():
    two = dict(enable=True, head_size=2, context_size=8, window_size=4)
    values = dict(
        data=dict(seq_len=4096, micro_bsz=1, total_steps=9),
        model=dict(num_layers=8, hidden_size=512, num_attention_heads=16, mlp_ratio=2, vocab_size=1024),
        parallel=dict(tensor=dict(size=16, mode="isp"), weight=dict(size=2), sequence_2D=two),
        ckpt=dict(enable_save_ckpt=False),
    )

    small = shrink(load_values(values), 4).config

    found = small.parallel.sequence_2D
    assert (small.parallel.tensor.size, found.head_size, found.context_size, found.window_size) == (4, 2, 2, 2)
    assert check(small, world_size=4, families={small.model_type}) == []


def test_what_set_says_stays_and_folders_that_exist_are_used(tmp_path):
    (tmp_path / "train").mkdir()
    file = next(file for file in CONFIGS if file.stem == "7B_llama2")
    sets = ["model.num_layers=5", "data.total_steps=7", "model.vocab_size=1000"]

    small = shrink(load_config(file, sets), 1)
    real = shrink(load_config(file, [f"data.train_folder={tmp_path / 'train'}"]), 1)

    assert (small.config.model.num_layers, small.config.data.total_steps, small.config.model.vocab_size) == (
        5,
        7,
        1000,
    )
    assert small.config.lr_scheduler.total_steps == 7 and small.sources["model.num_layers"] == "--set"
    assert real.config.data.type == "tokenized" and real.config.model.vocab_size == 32000


def test_a_released_model_by_name_in_a_configs_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = next(file for file in CONFIGS if file.stem == "9B_gemma2")
    command = ["train", "--config", str(file), "--shrink", "--set", "enable_tb=False"]

    assert main([*command, "--model", "qwen3-30b-a3b", "--backend", "cpu"]) == 0

    out, err = capsys.readouterr()
    assert "--model qwen3-30b-a3b: QWEN3MOE" in err and "model.checkpoint, model.dtype stay" in err
    assert (tmp_path / out.strip() / "metrics.jsonl").read_text().count('"loss"') == 3
    assert main([*command, "--model", "qwen3-30b"]) == 2
    assert "one of qwen3-30b-a3b" in capsys.readouterr().err


def test_a_released_model_has_its_sizes_and_nothing_of_the_config():
    file = next(file for file in CONFIGS if file.stem == "57B_qwen2_MoE")
    catalogue = Catalogue.of(load_plugins())
    loaded = load_config(file, ["model.num_layers=3"], released=catalogue.find("llama2-70b").model)

    assert loaded.config.model_type == "LLAMA2" and catalogue.failed == {}
    assert (loaded.config.model.num_experts, loaded.config.model.num_shared_experts) == (1, 0)
    assert (loaded.config.model.hidden_size, loaded.config.model.num_kv_attention_heads) == (8192, 8)
    assert (loaded.config.model.num_layers, loaded.config.model.dtype) == (3, "torch.bfloat16")
    assert loaded.sources["model.hidden_size"] == "--model llama2-70b"


def test_a_class_of_transformers_is_not_shrunk():
    hf = dict(cfg="transformers", cfg_cls="LlamaConfig", mod="transformers", mod_cls="LlamaForCausalLM")
    loaded = load_values(dict(data=dict(seq_len=8, micro_bsz=1, total_steps=1), hf=hf))

    with pytest.raises(UserError, match="--shrink with model_type='hf'"):
        shrink(loaded, 1)
