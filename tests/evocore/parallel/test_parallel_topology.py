"""Groups of ranks: InternEvo's layouts exactly, and what holds for every layout."""

import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evocore.config import load_values
from evocore.config.checks_parallel import size_problems
from evocore.parallel.topology import Sizes, Topology


def blocks(size, world):
    return [tuple(range(first, first + size)) for first in range(0, world, size)]


def divisor(draw, whole):
    return draw(st.sampled_from([size for size in range(1, whole + 1) if whole % size == 0]))


@st.composite
def sizes(draw):
    mode = draw(st.sampled_from(["mtp", "msp", "fsp", "isp"]))
    isp = mode == "isp"
    pipeline, stage = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]))
    tensor, weight = divisor(draw, stage), divisor(draw, stage) if isp else 1
    zero = divisor(draw, stage // (weight if isp else tensor))
    expert_tensor, expert_weight = (1, divisor(draw, stage)) if isp else (draw(st.sampled_from([1, tensor])), 1)
    expert = divisor(draw, stage // (expert_tensor * expert_weight))
    context = divisor(draw, tensor)
    window = divisor(draw, context)
    return Sizes(
        world=pipeline * stage,
        pipeline=pipeline,
        tensor=tensor,
        mode=mode,
        weight=weight,
        zero=zero,
        expert=expert,
        expert_tensor=expert_tensor,
        expert_weight=expert_weight,
        expert_zero=divisor(draw, stage // (expert_tensor * expert_weight * expert)),
        context=context,
        window=window,
        head_first=draw(st.booleans()),
        interleaved=context // window % 2 == 0 and draw(st.booleans()),
        kv_parts=divisor(draw, tensor // context),
    )


# --- InternEvo's layouts ------------------------------------------------------------------------------------------


def test_tensor_and_pipeline_on_16_ranks():
    whole = Topology(Sizes(world=16, tensor=4, pipeline=2))

    assert whole.groups("tensor") == whole.groups("sequence") == blocks(4, 16)
    assert whole.groups("data") == [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15)]
    assert whole.groups("pipeline") == [(rank, rank + 8) for rank in range(8)]
    assert whole.groups("model") == [(0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)]
    assert whole.groups("stage") == blocks(8, 16)
    assert whole.groups("world") == blocks(16, 16)


def test_isp_on_16_ranks_with_independent_weight_and_sequence_sizes():
    whole = Topology(Sizes(world=16, mode="isp", tensor=4, pipeline=2, weight=2, zero=2))

    assert whole.groups("weight") == blocks(2, 16)
    assert whole.groups("weight_data") == [(0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)]
    assert whole.groups("zero") == [(0, 2), (1, 3), (4, 6), (5, 7), (8, 10), (9, 11), (12, 14), (13, 15)]
    assert whole.groups("zero_replica") == [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15)]
    assert whole.groups("stage_replica") == [(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)]
    assert whole.groups("data") == [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15)]


def test_isp_with_weights_shared_by_more_ranks_than_sequences():
    whole = Topology(Sizes(world=32, mode="isp", tensor=4, weight=8, zero=2))

    assert whole.groups("weight") == blocks(8, 32)
    assert whole.groups("weight_data") == [(rank, rank + 8, rank + 16, rank + 24) for rank in range(8)]
    assert whole.groups("zero")[:3] == [(0, 8), (1, 9), (2, 10)]


def test_zero_takes_consecutive_members_of_data():
    whole = Topology(Sizes(world=8, tensor=2, zero=2))

    assert whole.groups("zero") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert whole.groups("zero_replica") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert whole.groups("stage_replica") == [(0, 1, 4, 5), (2, 3, 6, 7)]


def test_experts_within_data():
    whole = Topology(Sizes(world=8, tensor=2, expert_tensor=2, expert=2))

    assert whole.groups("data") == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert whole.groups("expert") == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert whole.groups("expert_data") == [(0, 4), (1, 5), (2, 6), (3, 7)]
    assert whole.groups("expert_tensor") == blocks(2, 8)


def test_experts_in_isp():
    whole = Topology(Sizes(world=16, mode="isp", tensor=4, expert_weight=2, expert=4))

    assert whole.groups("expert_weight") == blocks(2, 16)
    assert whole.groups("expert") == [(0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)]
    assert whole.groups("expert_data") == [(rank, rank + 8) for rank in range(8)]


@pytest.mark.parametrize(
    ("interleaved", "intra", "inter"),
    [
        (False, blocks(4, 16), [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]),
        (
            True,
            [(0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)],
            [(0, 1, 8, 9), (2, 3, 10, 11), (4, 5, 12, 13), (6, 7, 14, 15)],
        ),
    ],
)
def test_rings_in_a_ring(interleaved, intra, inter):
    whole = Topology(Sizes(world=16, mode="isp", tensor=16, context=16, window=4, interleaved=interleaved))

    assert whole.groups("context") == blocks(16, 16)
    assert whole.groups("intra_window") == whole.groups("dkv_intra_window") == intra
    assert whole.groups("inter_window") == whole.groups("dkv_inter_window") == inter


def test_heads_or_context_are_neighbours():
    heads = Topology(Sizes(world=16, mode="isp", tensor=8, context=4, window=2))
    context = Topology(Sizes(world=16, mode="isp", tensor=8, context=4, window=2, head_first=False))

    assert heads.groups("head") == blocks(2, 16)
    assert heads.groups("context") == [(0, 2, 4, 6), (1, 3, 5, 7), (8, 10, 12, 14), (9, 11, 13, 15)]
    assert heads.groups("intra_window")[:2] == [(0, 2), (1, 3)]
    assert heads.groups("inter_window")[:2] == [(0, 4), (1, 5)]
    assert context.groups("head") == [(0, 4), (1, 5), (2, 6), (3, 7), (8, 12), (9, 13), (10, 14), (11, 15)]
    assert context.groups("context") == blocks(4, 16)
    assert context.groups("intra_window") == blocks(2, 16)
    assert context.groups("inter_window")[:2] == [(0, 2), (1, 3)]


def test_ranks_with_the_same_key_value_head_are_neighbours():
    whole = Topology(Sizes(world=16, tensor=8, kv_parts=2))

    assert whole.groups("kv") == blocks(2, 16)


def test_weight_parallelism_is_alone_outside_isp():
    whole = Topology(Sizes(world=8, tensor=2))

    assert whole.groups("weight") == blocks(1, 8)
    assert whole.groups("weight_data") == whole.groups("data")


# --- what holds always --------------------------------------------------------------------------------------------


@given(sizes())
def test_every_name_partitions_the_ranks_and_members_agree(of):
    whole = Topology(of)
    for name in whole.names():
        groups = whole.groups(name)
        assert sorted(rank for group in groups for rank in group) == list(range(of.world))
        assert groups == sorted(groups) and all(list(group) == sorted(group) for group in groups)
        assert {len(group) for group in groups} == {whole.size(name)}
        for group in groups:
            for place, rank in enumerate(group):
                assert whole.group_of(name, rank) == group
                assert whole.index(name, rank) == place


@given(sizes())
def test_products(of):
    """Each pair meets in exactly one rank, and together they are the whole."""
    whole = Topology(of)
    pairs = [
        ("stage", "pipeline", "world"),
        ("tensor", "data", "stage"),
        ("tensor", "pipeline", "model"),
        ("model", "data", "world"),
        ("head", "context", "tensor"),
        ("intra_window", "inter_window", "context"),
        ("weight" if of.mode == "isp" else "tensor", "weight_data", "stage"),
        ("zero", "zero_replica", "weight_data"),
        ("zero", "stage_replica", "stage"),
        ("expert_zero", "expert_zero_replica", "expert_data"),
    ]
    for one, other, product in pairs:
        for group in whole.groups(product):
            parts = [set(whole.group_of(other, rank)) for rank in whole.group_of(one, group[0])]
            assert sum(map(len, parts)) == len(set().union(*parts)) == len(group), (one, other, product)
            assert set().union(*parts) == set(group), (one, other, product)
    experts = whole.size("expert") * whole.size("expert_tensor") * whole.size("expert_weight")
    assert experts * whole.size("expert_data") == whole.size("stage")


@given(sizes())
def test_names_that_mean_the_same_where_nothing_tells_them_apart(of):
    whole = Topology(of)
    assert whole.groups("sequence") == whole.groups("tensor")
    if of.mode != "isp":
        assert whole.groups("weight_data") == whole.groups("data")
    for rank in range(0, of.world, 7):
        members = whole.group_of("stage_replica", rank)
        assert len({whole.index("zero", member) for member in members}) == 1
        assert set(members) <= set(whole.group_of("stage", rank))
        place = whole.coordinates(rank)
        assert place["world"] == rank and place["stage"] + place["pipeline"] * of.stage == rank
        assert place["tensor"] + of.tensor * place["data"] == place["stage"]


def test_a_thousand_ranks_take_milliseconds():
    def seconds():
        start = time.perf_counter()
        whole = Topology(Sizes(world=1024, tensor=8, pipeline=4, zero=8, expert=4, expert_tensor=8, expert_zero=2))
        for name in whole.names():
            assert sum(map(len, whole.groups(name))) == 1024
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.1


def test_it_needs_no_torch():
    code = "import sys, evocore.parallel.topology; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"tensor": 3}, "tensor = 3 does not divide 8 ranks of a stage"),
        ({"pipeline": 16}, "pipeline = 16 does not divide 8 ranks"),
        ({"tensor": 4, "zero": 4}, "zero = 4 does not divide 2 ranks with the same weights"),
        ({"weight": 2}, "only isp has it"),
        ({"mode": "tp"}, "it can be mtp, msp, fsp, isp"),
        ({"expert": 4, "expert_tensor": 4}, "does not divide 8 ranks of a stage"),
        ({"expert": 4, "expert_zero": 4}, "expert_zero = 4 does not divide 2"),
        ({"tensor": 4, "context": 8}, "context = 8 does not divide 4"),
        ({"tensor": 8, "context": 4, "window": 4, "interleaved": True}, "window = 8 does not divide 4"),
        ({"tensor": 4, "kv_parts": 3}, "kv_parts = 3 does not divide 4"),
        ({"zero": 0}, "zero = 0"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(wrong, told):
    with pytest.raises(ValueError, match=told):
        Sizes(world=8, **wrong)


def test_unknown_names_and_ranks_are_refused():
    whole = Topology(Sizes(world=2))
    with pytest.raises(KeyError, match="tensors"):
        whole.groups("tensors")
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank {rank} of 2"):
            whole.group_of("data", rank)
        with pytest.raises(ValueError, match=f"rank {rank} of 2"):
            whole.index("data", rank)


# --- from a config ------------------------------------------------------------------------------------------------


def sizes_of(world_size, *sets):
    values = {
        "model_type": "INTERNLM2",
        "data": {"seq_len": 64, "micro_bsz": 2, "micro_num": 4, "total_steps": 10},
        "model": {"num_layers": 8, "hidden_size": 64, "num_attention_heads": 16, "vocab_size": 128, "mlp_ratio": 2.0},
        "ckpt": {"enable_save_ckpt": False},
    }
    config = load_values(values, sets).config
    assert size_problems(config, world_size) == []
    return Sizes.of(config, world_size)


def test_what_is_left_out_means_all():
    assert sizes_of(8) == Sizes(world=8, zero=8, expert_zero=8)
    assert sizes_of(8, "parallel.tensor.size=2").zero == 4
    assert sizes_of(8, "parallel.tensor.size=2", "parallel.zero1.size=2").zero_replica == 2
    isp = sizes_of(16, "parallel.tensor={'size':8,'mode':'isp'}", "parallel.weight.size=2")
    assert (isp.weight, isp.weight_data, isp.zero, isp.data, isp.head) == (2, 8, 8, 2, 8)


def test_experts_of_a_config():
    moe = "model.num_experts=4"
    assert sizes_of(16, moe, "parallel.tensor.size=2") == Sizes(
        world=16, tensor=2, zero=8, expert=4, expert_tensor=2, expert_zero=2
    )
    assert sizes_of(4, moe, "parallel.tensor.size=2").expert == 2  # no more than data
    alone = sizes_of(4, moe, "parallel.tensor.size=2", "parallel.expert.no_tp=True")
    assert (alone.expert, alone.expert_tensor, alone.expert_data) == (4, 1, 1)
    isp = sizes_of(
        16,
        moe,
        "parallel.tensor={'size':4,'mode':'isp'}",
        "parallel.expert_weight.size=2",
        "parallel.expert_zero1.size=1",
    )
    assert (isp.expert, isp.expert_weight, isp.expert_tensor, isp.expert_data, isp.expert_zero) == (4, 2, 1, 2, 1)


def test_sequences_in_two_dimensions():
    two = {"enable": True, "head_size": 2, "context_size": 8, "window_size": 2}
    placed = two | {"device_placement_strategy": {"head_first": False, "interleaved": True}}
    tensor = "parallel.tensor={'size':16,'mode':'isp'}"
    of = sizes_of(16, tensor, f"parallel.sequence_2D={placed}", "model.num_kv_attention_heads=1")
    assert (of.head, of.context, of.window, of.windows) == (2, 8, 2, 4)
    assert (of.head_first, of.interleaved, of.kv_parts) == (False, True, 2)

    one_window = placed | {"window_size": 8}
    assert not sizes_of(16, tensor, f"parallel.sequence_2D={one_window}").interleaved
    off = placed | {"enable": False}
    assert sizes_of(16, tensor, f"parallel.sequence_2D={off}") == sizes_of(16, tensor)


@pytest.mark.parametrize(("kv_heads", "parts"), [(16, 1), (8, 1), (4, 2), (1, 8)])
def test_key_value_heads_are_shared_where_they_are_too_few(kv_heads, parts):
    of = sizes_of(8, "parallel.tensor.size=8", f"model.num_kv_attention_heads={kv_heads}")
    assert of.kv_parts == parts
