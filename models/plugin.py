"""The model families that come with evocore, as a plug-in like any other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from evocore import hookimpl

if TYPE_CHECKING:
    from evocore.nn.family import ModelFamily


@hookimpl
def evocore_models() -> Iterable[ModelFamily]:
    from evocore.nn.family import ModelFamily

    return [
        ModelFamily(
            "INTERNLM2",
            "evocore.models.internlm2:build",
            aliases=("INTERNLM2_PUBLIC",),
            description="InternLM2: fused grouped wqkv, normalised head as an option",
            hugging_face=("internlm2",),
        ),
        ModelFamily(
            "INTERNLM_MoE",
            "evocore.models.internlm_moe:build",
            aliases=("INTERNLM_MOE",),
            description="InternLM-MoE: biases in attention, mixture of experts in the place of the MLP",
        ),
        ModelFamily(
            "LLAMA2",
            "evocore.models.llama2:build",
            aliases=("LLAMA",),
            description="Llama 2: separate wq, wk, wv; grouped queries as an option",
            hugging_face=("llama",),
        ),
        ModelFamily(
            "LLAMA3",
            "evocore.models.llama3:build",
            description="Llama 3, 3.1, 3.2 and 3.3: stretched rotary angles, tied head in small ones",
        ),
        ModelFamily(
            "INTERNLM",
            "evocore.models.internlm:build",
            description="InternLM: biases on query, key, value and output",
            hugging_face=("internlm",),
        ),
        ModelFamily(
            "INTERNLM3",
            "evocore.models.internlm3:build",
            description="InternLM3: two key-value heads, dynamic rotary scaling",
            hugging_face=("internlm3",),
        ),
        ModelFamily(
            "QWEN2",
            "evocore.models.qwen2:build",
            description="Qwen2: biases on query, key and value; windows as an option",
            hugging_face=("qwen2",),
        ),
        ModelFamily(
            "QWEN3",
            "evocore.models.qwen3:build",
            description="Qwen3: queries and keys normalised head by head; windows as an option",
            hugging_face=("qwen3",),
        ),
        ModelFamily(
            "BAICHUAN2",
            "evocore.models.baichuan2:build",
            description="Baichuan2 7B: normalised head",
            hugging_face=("baichuan",),
        ),
        ModelFamily(
            "GEMMA",
            "evocore.models.gemma:build",
            description="Gemma: norms with unit offset, GeGLU, scaled and tied embedding",
            hugging_face=("gemma",),
        ),
        ModelFamily(
            "GEMMA2",
            "evocore.models.gemma2:build",
            description="Gemma 2: norms on both sides, soft caps, a window in every other layer",
            hugging_face=("gemma2",),
        ),
        ModelFamily(
            "MIXTRALMOE",
            "evocore.models.mixtral:build",
            aliases=("MIXTRAL",),
            description="Mixtral: a mixture of experts in the place of every MLP",
            hugging_face=("mixtral",),
        ),
        ModelFamily(
            "QWEN2MOE",
            "evocore.models.qwen2_moe:build",
            aliases=("QWEN2_MOE",),
            description="Qwen2-MoE: many small experts, a gated shared expert, biases on query, key and value",
            hugging_face=("qwen2_moe",),
        ),
        ModelFamily(
            "QWEN3MOE",
            "evocore.models.qwen3_moe:build",
            aliases=("QWEN3_MOE",),
            description="Qwen3-MoE: many small experts, queries and keys normalised head by head",
            hugging_face=("qwen3_moe",),
        ),
        ModelFamily(
            "DEEPSEEK_V3",
            "evocore.models.deepseek_v3:build",
            aliases=("DEEPSEEKV3",),
            description="DeepSeek-V3: latent attention, experts chosen within groups and balanced by a bias",
            hugging_face=("deepseek_v3",),
        ),
        ModelFamily(
            "hf",
            "evocore.models.hf:build",
            description="a class of transformers as it is (config block hf): data parallelism and full sharding only",
        ),
    ]
