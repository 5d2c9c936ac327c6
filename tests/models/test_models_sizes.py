"""Released models by name, and our configs: each has as many parameters as was published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evocore.config import check, load_config, load_values
from evocore.nn.binding import model_requests
from evocore.nn.family import Numerics
from evocore.ops.resolution import resolve
from evocore.parallel.layout import Layout
from evocore.plugins.manager import load_plugins
from evocore.training.assembly import make_plan

FOLDER = Path(__file__).parents[2] / "configs"
BF16 = Numerics(torch.bfloat16, torch.bfloat16, torch.bfloat16)

PUBLISHED = {
    "internlm-7b": 7_321_948_160,
    "internlm-20b": 20_088_714_240,
    "internlm2-1.8b": 1_889_110_016,
    "internlm2-7b": 7_737_708_544,
    "internlm2-20b": 19_861_149_696,
    "internlm3-8b": 8_804_241_408,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "llama3.3-70b": 70_553_706_496,
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "baichuan2-7b": 7_505_973_248,
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma2-2b": 2_614_341_888,
    "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_630_071_296,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "qwen2-57b-a14b": 57_408_658_944,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "deepseek-v3": 671_026_404_352 + 11_610_067_968,  # what predicts one more token is not in "671B"
}

# Config -> the released model that it is, or for one that was never released its number.
CONFIGS = {
    "7B_sft": "internlm-7b",
    "1.8B_internlm2": "internlm2-1.8b",
    "7B_internlm2": "internlm2-7b",
    "20B_internlm2": "internlm2-20b",
    "8B_internlm3": "internlm3-8b",
    "7B_llama2": 2 * 32000 * 4096 + 4096 + 32 * (4096 * (4096 + 2 * 1024 + 4096 + 3 * 14336) + 2 * 4096),
    "30B_llama2": 32_528_943_616,
    "70B_llama2": "llama2-70b",
    "8B_llama3": "llama3.1-8b",
    "7B_isp_sft": 2 * 103168 * 4096 + 4096 + 32 * (4096 * (4096 + 2 * 1024 + 4096 + 3 * 11008) + 2 * 4096),
    "7B_qwen2": "qwen2-7b",
    "8B_qwen3": "qwen3-8b",
    "7B_baichuan2": "baichuan2-7b",
    "7B_gemma": "gemma-7b",
    "9B_gemma2": "gemma2-9b",
    "8x7B_mixtral": "mixtral-8x7b",
    "57B_qwen2_MoE": "qwen2-57b-a14b",
    "30B_qwen3_MoE": "qwen3-30b-a3b",
    "671B_deepseek_v3": "deepseek-v3",
    "1.8B_MoE16_sft": 2 * 92544 * 1024 + 1024 + 24 * (4 * 1024 * 1025 + 2 * 1024 + 16 * 1024 * (1 + 3 * 1536)),
    "7B_MoE4_sft": 2 * 103168 * 4096 + 4096 + 32 * (4 * 4096 * 4097 + 2 * 4096 + 4 * 4096 * (1 + 3 * 5632)),
}
BASES = {
    "internlm_7B": "internlm-7b",
    "internlm_20B": 20_088_714_240 + 60 * 4 * 5120,  # with the biases that InternEvo has and the release has not
    "internlm2_1B": "internlm2-1.8b",
    "internlm2_7B": "internlm2-7b",
    "internlm2_20B": "internlm2-20b",
}


def parameters(model):
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


def number(of):
    return PUBLISHED[of] if isinstance(of, str) else of


def released():
    return {name: family for family in load_plugins().models() for name in family.sizes()}


def test_every_released_size_is_in_the_list():
    assert set(released()) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_released_size_has_the_published_number_of_parameters(name):
    family = released()[name]
    run = dict(data=dict(seq_len=8, micro_bsz=1, total_steps=1), ckpt=dict(enable_save_ckpt=False))
    config = load_values(dict(model_type=family.name, model=dict(family.sizes()[name]), **run)).config

    assert check(config, world_size=1, families={family.name}) == []
    assert parameters(family.build(config.model.model_dump(), BF16)) == PUBLISHED[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_builds_its_model_and_finds_kernels_on_every_device(name):
    config, registry = load_config(FOLDER / f"{name}.py").config, load_plugins()
    family = next(family for family in registry.models() if family.name == config.model_type)

    model = family.build(config.model.model_dump(), BF16)

    assert parameters(model) == number(CONFIGS[name])
    for device in ("cpu", "cuda", "npu"):
        resolve(model_requests(model), registry.kernels(), device)
    plan = make_plan(config, registry, layout=Layout.smallest(config))  # one rank's part under the layout it names
    assert plan.parameters == number(CONFIGS[name])


@pytest.mark.parametrize("base", BASES)
def test_a_base_model_has_the_published_number_of_parameters(base, tmp_path):
    (tmp_path / "configs").symlink_to(FOLDER)
    path = tmp_path / "mine.py"
    path.write_text(
        "from evocore.config import read_base\n"
        "with read_base():\n"
        f"    from configs._base_.models.{base} import *\n"
        "data = dict(seq_len=8, micro_bsz=1, total_steps=1)\n"
    )
    config = load_config(path).config
    family = next(family for family in load_plugins().models() if family.name == config.model_type)

    assert parameters(family.build(config.model.model_dump(), BF16)) == number(BASES[base])
