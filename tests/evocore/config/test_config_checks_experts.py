"""Constraints on a mixture of experts, each by one config that violates it."""

import pytest
from config_samples import reported


@pytest.mark.parametrize(
    ("sets", "world_size", "wrong"),
    [
        (
            [
                "model.num_experts=4",
                "model.moe_layer_kwargs={'noisy_gate_policy':'RSample','scoring_func':'sigmoid'}",
            ],
            1,
            "model.moe_layer_kwargs.noisy_gate_policy='RSample' with scoring_func='sigmoid'",
        ),
        (["parallel.expert.size=2"], 2, "parallel.expert.size=2 for a dense model (model.num_experts=1)"),
        (["model.num_experts=2", "model.top_k=4"], 1, "model.top_k=4 is more than model.num_experts=2"),
        (
            ["model.num_experts=4", "parallel.expert.size=3"],
            3,
            "model.num_experts=4 is not divisible by parallel.expert.size=3",
        ),
        (
            ["model.num_experts=4", "parallel.expert.size=4"],
            6,
            "parallel.expert.size=4 times parallel.expert_weight.size=1 times 1 for tensor parallelism does not "
            "divide the 6 ranks",
        ),
        (
            ["model.num_experts=4", "model.moe_layer_kwargs.num_expert_groups=3"],
            1,
            "model.num_experts=4 is not divisible by model.moe_layer_kwargs.num_expert_groups=3",
        ),
        (
            ["model.num_experts=4", "model.moe_layer_kwargs={'num_expert_groups':4,'top_k_groups':1}"],
            1,
            "model.moe_layer_kwargs.top_k_groups=1 of 4 groups of 1 experts, with model.top_k=2",
        ),
        (
            ["model.num_experts=4", "model.first_k_dense_replace=3"],
            1,
            "model.first_k_dense_replace=3 is more than model.num_layers=2",
        ),
        (
            ["model.num_experts=4", "model.moe_layer_kwargs.aux_loss_by_layer=False", "parallel.pipeline.size=2"],
            2,
            "model.moe_layer_kwargs.aux_loss_by_layer=False with parallel.pipeline.size=2",
        ),
        (
            ["model.num_experts=4", "model.multiple_of=1", "model.mlp_ratio=0.3", "parallel.tensor.size=2"],
            2,
            "the width of an expert, 9, is not divisible by parallel.tensor.size=2",
        ),
        (
            [
                "model.num_experts=4",
                "parallel.expert.no_tp=True",
                "parallel.tensor.size=2",
                "data.seq_len=7",
                "data.micro_bsz=1",
            ],
            2,
            "data.packed_length=7 is not divisible by parallel.tensor.size=2 with parallel.expert.no_tp=True",
        ),
        (
            ["model.num_experts=4"],
            3,
            "parallel.expert.size=-1 means 3 ranks, and model.num_experts=4 is not divisible",
        ),
        (
            ["model.num_experts=4", "parallel.expert.size=2", "parallel.expert_zero1.size=3"],
            8,
            "parallel.expert_zero1.size=3 does not divide the 4 expert-data ranks",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':6}",
                "parallel.sequence_2D={'enable':True,'context_size':6,'window_size':2}",
                "parallel.sequence_2D.device_placement_strategy={'head_first':False,'interleaved':True}",
            ],
            6,
            "parallel.sequence_2D.device_placement_strategy.interleaved=True with 3 windows",
        ),
    ],
)
def test_each_constraint_is_reported(problems_of, sets, world_size, wrong):
    reported(problems_of(sets, world_size), wrong)
