"""Our configs: each loads without a mistake and has the shape of the model that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from evocore.config import check, load_config

FOLDER = Path(__file__).parents[2] / "configs"

# name: family, hidden, layers, heads, kv heads, head size, feed-forward width, vocabulary, epsilon, rotary base
FIGURES = {
    "7B_sft": ("INTERNLM", 4096, 32, 32, 32, 128, 11008, 103168, 1e-5, 1e4),
    "7B_internlm2": ("INTERNLM2", 4096, 32, 32, 8, 128, 14336, 92544, 1e-5, 1e4),
    "20B_internlm2": ("INTERNLM2", 6144, 48, 48, 8, 128, 16384, 92544, 1e-5, 1e6),
    "1.8B_internlm2": ("INTERNLM2", 2048, 24, 16, 8, 128, 8192, 92544, 1e-5, 1e6),
    "8B_internlm3": ("INTERNLM3", 4096, 48, 32, 2, 128, 10240, 128512, 1e-5, 5e7),
    "7B_llama2": ("LLAMA2", 4096, 32, 32, 8, 128, 14336, 32000, 1e-5, 1e4),
    "30B_llama2": ("LLAMA2", 6656, 60, 52, 52, 128, 17920, 32000, 1e-5, 1e4),
    "70B_llama2": ("LLAMA2", 8192, 80, 64, 8, 128, 28672, 32000, 1e-5, 1e4),
    "7B_qwen2": ("QWEN2", 3584, 28, 28, 4, 128, 18944, 152064, 1e-6, 1e6),
    "7B_baichuan2": ("BAICHUAN2", 4096, 32, 32, 32, 128, 11008, 125696, 1e-6, 1e4),
    "8B_llama3": ("LLAMA3", 4096, 32, 32, 8, 128, 14336, 128256, 1e-5, 5e5),
    "8B_qwen3": ("QWEN3", 4096, 36, 32, 8, 128, 12288, 151936, 1e-6, 1e6),
    "9B_gemma2": ("GEMMA2", 3584, 42, 16, 8, 256, 14336, 256000, 1e-6, 1e4),
    "7B_gemma": ("GEMMA", 3072, 28, 16, 16, 256, 24576, 256000, 1e-6, 1e4),
    "57B_qwen2_MoE": ("QWEN2MOE", 3584, 28, 28, 4, 128, 2560, 151936, 1e-6, 1e6),
    "30B_qwen3_MoE": ("QWEN3MOE", 2048, 48, 32, 4, 128, 6144, 151936, 1e-6, 1e6),
    "671B_deepseek_v3": ("DEEPSEEK_V3", 7168, 61, 128, 128, 192, 18432, 129280, 1e-6, 1e4),
    "8x7B_mixtral": ("MIXTRALMOE", 4096, 32, 32, 8, 128, 14336, 32000, 1e-5, 1e6),
    "7B_isp_sft": ("INTERNLM2", 4096, 32, 32, 8, 128, 11008, 103168, 1e-5, 1e4),
    "1.8B_MoE16_sft": ("INTERNLM_MoE", 1024, 24, 16, 16, 64, 1536, 92544, 1e-5, 1e4),
    "7B_MoE4_sft": ("INTERNLM_MoE", 4096, 32, 32, 32, 128, 5632, 103168, 1e-5, 1e4),
}


def test_the_list_is_complete():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*FIGURES, "demo"}


@pytest.mark.parametrize("name", FIGURES)
def test_a_config_has_the_figures_of_its_model(name):
    config = load_config(FOLDER / f"{name}.py").config

    model = config.model
    width = -(-int(model.hidden_size * model.mlp_ratio) // model.multiple_of) * model.multiple_of
    assert (
        config.model_type,
        model.hidden_size,
        model.num_layers,
        model.num_attention_heads,
        model.num_kv_attention_heads,
        model.head_dim,
        width,
        model.vocab_size,
        model.layer_norm_epsilon,
        model.rope_base,
    ) == FIGURES[name]
    assert config.hybrid_zero_optimizer.clip_grad_norm == 1.0
    assert config.model.dtype == "torch.bfloat16"


@pytest.mark.parametrize(
    ("name", "world_size"),
    [
        ("20B_internlm2", 32),
        ("70B_llama2", 128),
        ("30B_llama2", 16),
        ("7B_isp_sft", 8),
        ("8B_internlm3", 16),
        ("30B_qwen3_MoE", 16),
        ("671B_deepseek_v3", 2048),
    ],
)
def test_a_layout_fits_the_ranks_that_it_is_made_for(name, world_size):
    config = load_config(FOLDER / f"{name}.py").config

    assert check(config, world_size=world_size, families={config.model_type}) == []


@pytest.mark.parametrize("name", ["7B_internlm2", "7B_llama2", "1.8B_MoE16_sft", "7B_MoE4_sft"])
def test_a_model_of_a_known_family_is_runnable_on_one_rank(name):
    config = load_config(FOLDER / f"{name}.py").config

    assert check(config, world_size=1, families={"INTERNLM2", "LLAMA2", "INTERNLM_MoE"}) == []


@pytest.mark.parametrize("base", sorted(path.stem for path in (FOLDER / "_base_/models").glob("*.py")))
def test_every_base_model_completes_a_config(base, tmp_path):
    path = tmp_path / "mine.py"
    (tmp_path / "configs").symlink_to(FOLDER)
    path.write_text(
        "from evocore.config import read_base\n"
        "with read_base():\n"
        "    from configs._base_.default_runtime import *\n"
        f"    from configs._base_.models.{base} import *\n"
        "data = dict(seq_len=8, micro_bsz=1, total_steps=1)\n"
    )

    config = load_config(path).config

    assert config.model_type == base.split("_")[0].upper()
    assert check(config, world_size=1, families={config.model_type}) == []


def test_the_demo_runs_on_one_rank_and_on_four():
    loaded = load_config(FOLDER / "demo.py")

    for world_size in (1, 4):
        assert check(loaded.config, world_size=world_size, families={"INTERNLM2"}) == []
    assert loaded.config.model.dtype == "auto"
    assert loaded.config.data.type == "tokenized"
    assert loaded.config.data.raw.vocab_size == loaded.config.model.vocab_size
    assert Path(loaded.config.data.raw.sources[0]).is_dir()
