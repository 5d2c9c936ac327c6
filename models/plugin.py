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
        ),
    ]
