"""Fully sharded data parallelism: the same losses as one process, from weights of which each rank holds a part."""

import functools
import math
from collections import Counter

import pytest
import torch
from parallel_fsdp_runs import MODEL, config, deferred_rows, exchanges, held_bytes, losses_without_head, train
from torch import nn

from evocore.parallel.buckets import Member
from evocore.parallel.fsdp import RowShard
from evocore.parallel.placement import Placement
from evocore.parallel.sharding import Part, Sharing, fully_shard_matrices

ON = dict(fsdp=dict(enable=True))
UNFUSED = dict(num_kv_attention_heads=1, checkpoint=0.5)
BIASED = dict(no_bias=False, qkv_bias=True, o_bias=True, mlp_bias=True, mlp_layer_fusion=True)
OVERLAPPED = dict(overlap_sync_grad=True, overlap_sync_param=True)
UNITS = 4  # embedding, two blocks, head


DEEP = dict(num_layers=4)


def stages(schedule):
    return dict(zero1=dict(size=2), pipeline=dict(size=2, mode=schedule))


def msp(size):
    return dict(tensor=dict(size=size, mode="msp"))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The figures of one process for a model and a global batch."""

    @functools.cache
    def figures(model, batch):
        folder = tmp_path_factory.mktemp("single")
        return train(config(folder, batch, dict(model=MODEL | dict(model))))[0]

    return lambda model, batch: figures(tuple(model.items()), batch)


@pytest.mark.parametrize(
    ("world", "data", "micro", "parallel", "model", "zero"),
    [
        pytest.param(2, 2, 2, dict(zero1=dict(size=-1, fsdp=True)), {}, {}, id="1-D on 2"),
        pytest.param(4, 4, 1, ON, dict(vocab_size=66), {}, id="1-D on 4, uneven"),
        pytest.param(4, 4, 2, ON | dict(zero1=dict(size=2)), {}, OVERLAPPED, id="hybrid 2x2, accumulating"),
        pytest.param(4, 2, 2, ON | msp(2), UNFUSED, {}, id="msp 2 x 2, recomputing"),
        pytest.param(4, 2, 1, ON | dict(tensor=2), BIASED, OVERLAPPED, id="mtp 2 x 2, biases"),
        pytest.param(8, 4, 2, ON | stages("1F1B"), DEEP, {}, id="hybrid 2x2 in 2 stages of 2 chunks"),
        pytest.param(8, 4, 2, ON | stages("ZBV"), DEEP, OVERLAPPED, id="hybrid 2x2, zero-bubble"),
    ],
)
def test_losses_and_gradient_norms_are_those_of_one_process(
    ranks, tmp_path, single, world, data, micro, parallel, model, zero
):
    chunks = dict(num_chunks=2) if parallel.get("pipeline", {}).get("mode") == "1F1B" else {}
    blocks = dict(model=MODEL | model | chunks, hybrid_zero_optimizer=zero)
    values = config(tmp_path, micro, blocks, **parallel)
    got, _ = ranks(world, train, values, evaluates=True, timeout=200)[0]

    want = [(loss, norm, loss) for loss, norm in single(model, micro * data)]
    assert len(got) == 10
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-5, atol=0)


@pytest.mark.parametrize("sharded_first", [True, False])
def test_a_checkpoint_goes_on_in_the_other_layout(ranks, tmp_path, single, sharded_first):
    def run(sharded, **blocks):
        values = config(tmp_path, 2 if sharded else 4, blocks, steps=blocks.pop("steps"), **(ON if sharded else {}))
        return ranks(2, train, values, timeout=200)[0] if sharded else train(values)

    _, folder = run(sharded_first, steps=4, ckpt=dict(enable_save_ckpt=True, checkpoint_every=4))
    (path,) = (folder / "checkpoints").iterdir()
    load = dict(load_ckpt_info=dict(path=str(path), content=("all",), ckpt_type="evocore"))
    got, _ = run(not sharded_first, steps=10, ckpt=load)

    torch.testing.assert_close(torch.tensor(got), torch.tensor(single({}, 4)[4:]), rtol=1e-5, atol=0)


@pytest.mark.parametrize("travel", [None, "torch.bfloat16"])
def test_half_precision_weights_beside_float32_norms_train_as_with_zero(ranks, tmp_path, travel):
    tiny = MODEL | dict(hidden_size=16, vocab_size=32, num_layers=1, num_attention_heads=2, dtype="torch.bfloat16")
    blocks = dict(model=tiny, data=dict(seq_len=8), use_fp32_norm=True, reduce_comm_dtype=travel)
    zero, sharded = (
        ranks(2, train, config(tmp_path, 2, blocks, steps=4, **parallel), timeout=200)[0][0] for parallel in ({}, ON)
    )

    torch.testing.assert_close(torch.tensor(sharded), torch.tensor(zero), rtol=2e-2, atol=0)
    assert sharded[0][0] == zero[0][0]  # from the same weights


def test_blocks_are_gathered_ahead_and_replicas_exchange_once_per_step(ranks, tmp_path):
    values = config(tmp_path, 2, {}, steps=1, **ON | dict(zero1=dict(size=2)))
    events = ranks(4, exchanges, values, timeout=200)[0]

    gather, first, second = ("_allgather_base_", 2), events.index(("block 0", 0)), events.index(("block 1", 0))
    assert events[:first].count(gather) == 3  # embedding, block 0 and already block 1
    assert events[first:second].count(gather) == 1  # the head
    again = events.index(("block 0", 0), second)
    assert events[second:again].count(gather) == 2 + 3  # both blocks for backward, and the second micro-batch begins
    counts = Counter(events)
    assert counts["_reduce_scatter_base_", 2] == 2 * UNITS
    assert counts["allreduce_", 2] == UNITS + 1  # after the last micro-batch only; and one bucket of norms


def test_gradients_that_were_put_off_are_summed_over_ranks_micro_batches_and_replicas(ranks):
    """Of weights whose rows do not divide evenly: the second rank of two has fewer of one, and none of the other."""
    shapes = {"a": (5, 2), "b": (1, 3)}
    rows = ranks(4, deferred_rows, shapes, micro_batches=2)

    for name, shape in shapes.items():
        each = torch.arange(float(math.prod(shape))).view(shape)
        whole = sum(each + rank + 10 * micro for rank in range(4) for micro in range(2))
        for first in (0, 2):  # of each replica
            assert torch.equal(torch.cat([rows[first][name], rows[first + 1][name]]), whole)


def test_a_rank_holds_its_part_of_weights_gradients_and_moments(ranks, tmp_path):
    wide = MODEL | dict(hidden_size=64)
    values = config(tmp_path, 1, dict(model=wide), steps=2, **ON)
    whole = held_bytes(config(tmp_path, 1, dict(model=wide), steps=2))
    parts = ranks(4, held_bytes, values, timeout=200)

    assert 16 * 82_000 < whole < 16 * 86_000  # bytes of each parameter
    assert max(parts) < 0.28 * whole


def test_weights_that_changed_are_gathered_again(ranks, tmp_path):
    before, after = ranks(2, losses_without_head, config(tmp_path, 2, {}, steps=1, **ON), timeout=200)[0]

    assert before != pytest.approx(math.log(64), rel=1e-5)
    assert after == pytest.approx(math.log(64), rel=1e-6)


def test_rows_begin_as_what_the_model_computes_with():
    parameter = nn.Parameter(torch.tensor([[1 + 2**-10, 3.0]]))
    member = Member("weight", parameter, Sharing(Placement.whole((1, 2)), "data", fully_sharded=True), 0)
    rows = RowShard(member, weight_decay=0.0, copies=1, computed_in=torch.bfloat16)

    assert rows.master.tolist() == [1.0, 3.0] == parameter.flatten().tolist()
    assert rows.reduced.tolist() == [0.0, 0.0]  # nothing depends on it


def test_rows_are_dealt_as_pytorch_deals_them():
    sharings = {
        "matrix": Sharing(Placement.whole((10, 3)).rows([(0, 2), (5, 8)]), "data"),
        "norm": Sharing(Placement.whole((5,)), "data"),
        "shared": Sharing(Placement.whole((5, 3)), "stage"),
    }
    whole = torch.arange(30.0).view(10, 3)
    local = torch.cat([whole[:2], whole[5:8]])
    dealt = [fully_shard_matrices(sharings, Part(index, 4)) for index in range(4)]

    for own, chunk in zip(dealt, [*local.chunk(4), local[:0]], strict=True):
        assert torch.equal(own["matrix"].placement.take(whole), chunk)
        assert own["matrix"].fully_sharded
        assert own["norm"] == sharings["norm"] and own["shared"] == sharings["shared"]
