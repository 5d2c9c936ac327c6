"""Constraints on the block ``parallel`` and on what it divides, each by one config that violates it."""

import pytest
from config_samples import FAMILIES, reported

from evocore.config import check
from evocore.config.checks_parallel import size_problems


@pytest.mark.parametrize(
    ("sets", "world_size", "wrong"),
    [
        (["parallel.zero1.size=8"], 1, "parallel.zero1.size=8 does not divide the 1 data-parallel ranks"),
        (["parallel.zero1.size=3"], 8, "parallel.zero1.size=3 does not divide the 8 data-parallel ranks"),
        (
            ["parallel.tensor.size=2"],
            3,
            "parallel.tensor.size=2 times parallel.pipeline.size=1 does not divide 3 ranks",
        ),
        (
            ["parallel.tensor.mode=isp", "parallel.weight.size=4"],
            6,
            "parallel.weight.size=4 times parallel.pipeline.size=1 does not divide 6 ranks",
        ),
        (["parallel.weight.size=2"], 2, "parallel.weight.size=2 with parallel.tensor.mode='mtp'"),
        (["parallel.expert_weight.size=2"], 2, "parallel.expert_weight.size=2 with parallel.tensor.mode='mtp'"),
        (["parallel.tensor.size=3"], 3, "model.vocab_size=128 is not divisible by parallel.tensor.size=3"),
        (["parallel.tensor.size=8"], 8, "model.num_attention_heads=4 is not divisible by parallel.tensor.size=8"),
        (
            [
                "parallel.tensor.size=4",
                "model.hidden_size=48",
                "model.num_attention_heads=12",
                "model.num_kv_attention_heads=6",
            ],
            4,
            "model.num_kv_attention_heads=6 is not divisible by parallel.tensor.size=4",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':16}",
                "parallel.sequence_2D={'enable':True,'head_size':8,'context_size':2}",
            ],
            16,
            "model.num_attention_heads=4 is not divisible by parallel.sequence_2D.head_size=8",
        ),
        (
            ["parallel.tensor.mode=isp", "parallel.weight.size=4", "parallel.zero1.size=4"],
            8,
            "parallel.zero1.size=4 does not divide the 2 weight-data ranks",
        ),
        (
            ["parallel.tensor.mode=isp", "parallel.weight.size=3"],
            3,
            "model.vocab_size=128 is not divisible by parallel.weight.size=3",
        ),
        (
            ["parallel.tensor={'mode':'msp','size':4}", "data.seq_len=7", "data.micro_bsz=1"],
            4,
            "data.packed_length=7 is not divisible by parallel.tensor.size=4",
        ),
        (["parallel.pipeline.size=4"], 4, "model.num_layers=2 is less than parallel.pipeline.size=4 times"),
        (
            ["parallel.pipeline.size=2", "data.micro_num=1"],
            2,
            "data.micro_num=1 is less than parallel.pipeline.size=2",
        ),
        (
            ["parallel.pipeline.size=2", "parallel.pipeline.layers=[2]"],
            2,
            "parallel.pipeline.layers=[2] for model.num_layers=2 in 2 chunks",
        ),
        (["parallel.pipeline.layers=[3]"], 1, "parallel.pipeline.layers=[3] for model.num_layers=2 in 1 chunk"),
        (
            ["parallel.pipeline.mode=ZBH1", "model.num_chunks=2"],
            1,
            "model.num_chunks=2 with parallel.pipeline.mode='ZBH1'",
        ),
        (["data.gradient_accumulation=2"], 1, "data.gradient_accumulation=2 differs from data.micro_num=4"),
        (
            ["parallel.fsdp.enable=True", "parallel.tensor.mode=isp"],
            1,
            "parallel.tensor.mode='isp' with fully sharded data parallelism",
        ),
        (
            ["parallel.fsdp.enable=True", "parallel.zero1.size=1"],
            2,
            "parallel.zero1.size=1 with fully sharded data parallelism",
        ),
        (
            ["parallel.sequence_2D={'enable':True,'head_size':2,'context_size':2}"],
            1,
            "parallel.sequence_2D: head_size=2 times context_size=2 is not parallel.tensor.size=1",
        ),
        (
            ["parallel.tensor.size=2", "parallel.sequence_2D={'enable':True,'context_size':2}"],
            2,
            "parallel.sequence_2D.enable=True with parallel.tensor.mode='mtp'",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':4}",
                "parallel.sequence_2D={'enable':True,'context_size':4}",
                "data.seq_len=12",
                "data.micro_bsz=1",
            ],
            4,
            "data.packed_length=12 is not divisible by 8, twice parallel.sequence_2D.context_size=4",
        ),
        (
            [
                "parallel.tensor={'mode':'isp','size':2}",
                "parallel.sequence_2D={'enable':True,'context_size':2}",
                "model.use_sliding_window=True",
                "model.sliding_window=4",
            ],
            2,
            "model.use_sliding_window=True with parallel.sequence_2D.context_size=2",
        ),
        (
            ["parallel.sequence_2D={'enable':True,'context_size':4,'window_size':3}"],
            1,
            "parallel.sequence_2D: window_size=3 does not divide context_size=4",
        ),
        (
            [
                "parallel.sequence_2D={'enable':True,'head_size':2}",
                "parallel.sequence_2D.device_placement_strategy.interleaved=True",
            ],
            1,
            "parallel.sequence_2D.device_placement_strategy: interleaved=True with head_first=True",
        ),
    ],
)
def test_each_constraint_is_reported(problems_of, sets, world_size, wrong):
    reported(problems_of(sets, world_size), wrong)


@pytest.mark.parametrize(
    "sets",
    [
        ["model.num_chunks=2", "model.num_layers=4"],  # without interleaved_overlap, which InternEvo wants here
        ["model.num_chunks=2", "model.num_layers=7", "data.micro_num=3"],
        ["parallel.pipeline.mode=ZBH1", "hybrid_zero_optimizer.overlap_sync_grad=True"],
        ["parallel.pipeline.mode=ZBH1", "parallel.tensor.mode=isp", "parallel.weight={'size':2,'overlap':True}"],
        ["parallel.pipeline.mode=ZBV", "model.num_layers=5", "parallel.pipeline.layers=[1,2,1,1]"],
        ["data.gradient_accumulation=1"],
    ],
)
def test_pipelines_are_free_of_constraints_that_have_lost_their_reason(problems_of, sets):
    assert problems_of(["parallel.pipeline.size=2", *sets], world_size=4) == []


def test_sizes_that_divide_are_no_problem_before_they_are_supported(load):
    config = load("model.drop_rate=0.1", "model.num_experts=4", "parallel.pipeline.size=2").config

    assert size_problems(config, 8) == []
    assert check(config, world_size=8, families=FAMILIES)


@pytest.mark.parametrize(
    "two",
    [
        "{'enable':True,'head_size':4,'context_size':2}",
        "{'enable':True,'head_size':2,'context_size':4,'window_size':2}",
        "{'enable':True,'head_size':1,'context_size':8,'window_size':2,"
        "'device_placement_strategy':{'head_first':False,'interleaved':True}}",
    ],
)
def test_two_dimensional_sequence_parallelism_takes_packed_documents(problems_of, two):
    sets = ["parallel.tensor={'mode':'isp','size':8}", f"parallel.sequence_2D={two}", "data.use_packed_dataset=True"]

    assert problems_of(sets, world_size=8) == []
