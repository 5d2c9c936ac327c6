"""Constraints on the block ``model``, each by one config that violates it."""

import pytest
from config_samples import LATENT, reported


@pytest.mark.parametrize(
    ("sets", "world_size", "wrong"),
    [
        (
            ["model.use_dynamic_ntk_rope=True", "model.rope_type=yarn"],
            1,
            "model.use_dynamic_ntk_rope=True with model.rope_type='yarn'",
        ),
        (["model.rope_scaling_factor=2"], 1, "model.rope_scaling_factor=2.0 without a rotary scaling scheme"),
        (
            ["model.rope_type=llama3", "model.rope_kwargs.beta_fast=16"],
            1,
            "model.rope_kwargs.beta_fast=16.0 with model.rope_type='llama3', which does not read it",
        ),
        (
            ["model.rope_type=yarn", "model.rope_kwargs.mscale=1.0"],
            1,
            "model.rope_kwargs.mscale=1.0 with mscale_all_dim=None",
        ),
        (
            ["model.rope_type=llama3", "model.rope_kwargs.low_freq_factor=4"],
            1,
            "model.rope_kwargs.low_freq_factor=4.0 is not below high_freq_factor=4.0",
        ),
        (
            ["model.rope_type=dynamic", "model.head_dim=2"],
            1,
            "model.head_dim=2 with dynamic rotary scaling",
        ),
        (["model.use_sliding_window=True"], 1, "model.use_sliding_window=True without model.sliding_window"),
        (
            ["model.use_sliding_window=True", "model.sliding_window=4", "model.layer_types=['full_attention']"],
            1,
            "model.layer_types has 1 entries for model.num_layers=2",
        ),
        (
            ["model.layer_types=['full_attention','sliding_attention']"],
            1,
            "model.layer_types names sliding_attention with model.use_sliding_window=False",
        ),
        (["model.hidden_size=30"], 1, "model.hidden_size=30 is not divisible by model.num_attention_heads=4"),
        (["model.num_kv_attention_heads=3"], 1, "model.num_attention_heads=4 is not divisible by model.num_kv_att"),
        (["model.head_dim=7"], 1, "model.head_dim=7 is odd"),
        (["model.qk_nope_head_dim=8"], 1, "model.qk_rope_head_dim=None with other sizes of latent attention"),
        (["model.q_lora_rank=8"], 1, "model.qk_nope_head_dim=None with other sizes of latent attention"),
        ([*LATENT, "model.qk_rope_head_dim=3"], 1, "model.qk_rope_head_dim=3 is odd"),
        ([*LATENT, "model.v_head_dim=13"], 1, "model.v_head_dim=13 is more than qk_nope_head_dim + qk_rope_head_dim"),
        ([*LATENT, "model.num_kv_attention_heads=2"], 1, "model.num_kv_attention_heads=2 with model.kv_lora_rank"),
        (
            ["model.num_experts=4", "model.mlp_only_layers=[1,2]"],
            1,
            "model.mlp_only_layers names layer 2 of model.num_layers=2",
        ),
    ],
)
def test_each_constraint_is_reported(problems_of, sets, world_size, wrong):
    reported(problems_of(sets, world_size), wrong)
