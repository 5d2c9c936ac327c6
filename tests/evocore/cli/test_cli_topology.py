"""The groups of a config on the command line."""

import json
import re

import pytest

from evocore.cli.main import main
from evocore.cli.topology import compact_ranks
from evocore.config.shipped import shipped_config

CONFIG = str(shipped_config("7B_internlm2"))
MOE = str(shipped_config("8x7B_mixtral"))


def answer(capsys, *arguments):
    assert main(["topology", *arguments]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    return told.out


def sets(**values):
    return [word for key, value in values.items() for word in ("--set", f"parallel.{key.replace('__', '.')}={value}")]


def test_a_thousand_ranks_as_a_table(capsys):
    sized = sets(tensor__size=8, pipeline__size=4, zero1__size=8)
    out = answer(capsys, "--config", CONFIG, "--world-size", "1024", *sized)

    first, work, weights, *table = out.splitlines()
    assert first == f"{CONFIG}: 1024 ranks, mode mtp"
    assert work == "work     1024 = pipeline 4 x data 32 x tensor 8"
    assert weights == "weights  1024 = pipeline 4 x zero_replica 4 x zero 8 x tensor 8"
    rows = {line.split()[0]: line.split()[1:4] for line in table if line}
    assert rows["tensor"] == ["128", "8", "0-7"]
    assert rows["data"] == ["32", "32", "0,8,..,248"]
    assert rows["zero"] == ["128", "8", "0,8,..,56"]
    assert rows["pipeline"] == ["256", "4", "0,256,512,768"]
    assert rows["model"] == ["32", "32", "0-7,256-263,512-519,768-775"]
    assert rows["stage_replica"] == ["32", "32", "0-7,64-71,128-135,192-199"]


def test_json_of_another_rank(capsys):
    sized = sets(tensor="{'size':4,'mode':'isp'}", weight__size=2, zero1__size=2, pipeline__size=2)
    facts = json.loads(answer(capsys, "--config", CONFIG, "--world-size", "16", "--rank", "9", "--json", *sized))

    assert (facts["config"], facts["rank"]) == (CONFIG, 9)
    assert facts["sizes"]["world"] == 16 and facts["sizes"]["mode"] == "isp"
    assert (facts["sizes"]["weight"], facts["sizes"]["weight_data"], facts["sizes"]["zero_replica"]) == (2, 4, 2)
    groups = {group["name"]: group for group in facts["groups"]}
    assert groups["weight_data"]["ranks"] == [9, 11, 13, 15]
    assert groups["zero"] == {
        "name": "zero",
        "groups": 8,
        "size": 2,
        "index": 0,
        "ranks": [9, 11],
        "purpose": "one copy of the optimizer state is sharded",
    }
    assert groups["tensor"]["ranks"] == [8, 9, 10, 11] and groups["tensor"]["index"] == 1


def test_experts_and_two_dimensions_are_told_where_there_are_some(capsys):
    out = answer(capsys, "--config", MOE, "--world-size", "64")
    assert "experts  64 = pipeline 1 x expert_zero_replica 1 x expert_zero 8 x expert 8 x expert_tensor 1\n" in out

    two = "{'enable':True,'head_size':2,'context_size':4}"
    sized = sets(tensor="{'size':8,'mode':'isp'}", weight__size=4, sequence_2D=two)
    out = answer(capsys, "--config", CONFIG, "--world-size", "16", *sized)
    assert "work     16 = pipeline 1 x data 2 x tensor 8 (head 2 x context 4)\n" in out
    assert "weights  16 = pipeline 1 x zero_replica 1 x zero 4 x weight 4\n" in out


@pytest.mark.parametrize(
    ("world_size", "sized", "told"),
    [
        ("12", {"tensor__size": 8}, "parallel.tensor.size=8 times parallel.pipeline.size=1 does not divide 12 ranks"),
        (
            "8",
            {"tensor__size": 2, "zero1__size": 3},
            "parallel.zero1.size=3 does not divide the 4 data-parallel ranks",
        ),
        ("64", {"tensor__size": 64}, "is not divisible by parallel.tensor.size=64"),
    ],
)
def test_sizes_that_do_not_divide_are_the_configs_mistakes(world_size, sized, told, capsys):
    assert main(["topology", "--config", CONFIG, "--world-size", world_size, *sets(**sized)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and "not supported yet" not in err


def test_several_mistakes_come_together(capsys):
    sized = sets(tensor__size=3, pipeline__size=64)
    assert main(["topology", "--config", CONFIG, "--world-size", "8", *sized]) == 2
    err = capsys.readouterr().err
    assert f"{CONFIG} does not divide 8 ranks: " in err and " mistakes\n  1. parallel.tensor.size=3 times" in err
    assert "model.num_layers=32 is less than parallel.pipeline.size=64" in err


def test_a_rank_beyond_the_last_is_refused(capsys):
    assert main(["topology", "--config", CONFIG, "--world-size", "8", "--rank", "8"]) == 2
    assert "--rank 8 of --world-size 8\n  expected: a rank from 0 to 7" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        ([5], "5"),
        ([4, 5], "4-5"),
        (range(8), "0-7"),
        ([0, 8, 16, 24], "0,8,16,24"),
        (range(0, 1024, 8), "0,8,..,1016"),
        ([0, 1, 8, 9], "0-1,8-9"),
        ([rank for rank in range(64) if rank % 8 < 4], "0-3,8-11,..,56-59"),
        ([0, 1, 2, 5], "0-2,5"),
    ],
)
def test_ranks_are_written_shortly(ranks, text):
    assert compact_ranks(ranks) == text


# --- traffic and memory ---------------------------------------------------------------------------------------------

ISP = str(shipped_config("7B_isp_sft"))
# 32 blocks of width 4096: 32 heads and 8 of keys, a feed-forward of 11008; 103168 words at both ends; in bfloat16
WQKV, WO, W1, EDGE = 6144 * 4096 * 2, 4096 * 4096 * 2, 11008 * 4096 * 2, 103168 * 4096 * 2
BLOCKS, NORMS, MICRO_BATCHES, TOKENS = 32, 65 * 4096 * 2, 4, 4096
BLOCK = WQKV + WO + 3 * W1


def counted(capsys, *arguments):
    return json.loads(answer(capsys, "--json", *arguments))


def test_traffic_of_seven_billion_parameters_on_a_thousand_ranks(capsys):
    facts = counted(capsys, "--config", ISP, "--world-size", "1024", "--rank", "1023", "--traffic")

    found = {row["purpose"]: (row["group"], row["op"], row["calls"], row["bytes"]) for row in facts["traffic"]}
    layers, weights = 5 * BLOCKS, BLOCKS * BLOCK
    heads = TOKENS * 128 * 2  # bytes of all tokens of one head; 16 query heads and 4 of keys and values on each rank
    exchanges = MICRO_BATCHES * BLOCKS
    assert found["weights for forward"] == ("weight", "all_gather", 4 * (layers + 2), 4 * (weights + 2 * EDGE))
    assert found["weights for backward"] == ("weight", "all_gather", 4 * layers, 4 * weights)
    assert found["gradients of weights"] == ("weight", "reduce_scatter", 4 * (layers + 2), 4 * (weights + 2 * EDGE))
    for purpose, count in (
        ("queries, keys, values to their heads", 24),
        ("results of attention to their tokens", 16),
    ):
        assert found[purpose] == ("sequence", "all_to_all", exchanges, exchanges * count * heads)
    shards = (weights + 2 * EDGE) // 4 + NORMS
    assert found["gradients to their owners"][:2] == ("zero", "reduce_scatter")
    assert found["gradients to their owners"][3] == 2 * shards  # float32
    assert found["new parameters"][1::2] == ("all_gather", shards)
    assert found["gradients of the replicas"] == ("stage_replica", "all_reduce", 1, 2 * NORMS // 256)
    assert "memory" not in facts and "groups" in facts


def test_memory_of_seven_billion_parameters_on_a_thousand_ranks(capsys):
    facts = counted(capsys, "--config", ISP, "--world-size", "1024", "--memory")

    found = {row["what"]: row["bytes"] for row in facts["memory"]}
    shards = (BLOCKS * BLOCK + 2 * EDGE) // 4 + NORMS
    owned = 2 * shards // 256
    assert found == {
        "parameters": shards,
        "gradients": 2 * shards,
        "master weights": owned,
        "first moments": owned,
        "second moments": owned,
        "gathered weights": BLOCK + EDGE,
        "gradients of gathered weights": W1 + EDGE,
    }
    assert {row["what"] for row in facts["memory"] if row["bound"]} == {
        "gathered weights", "gradients of gathered weights",
    }  # fmt: skip


# 32 blocks of width 4096 with 8 experts of width 14336, 2 for each token, and 32000 words; 2 packs of TOKENS at once
HIDDEN, EXPERT = 2 * TOKENS * 4096 * 2, 3 * 14336 * 4096


def test_a_mixture_in_a_pipeline_of_two_hundred_ranks(capsys):
    sized = [*sets(pipeline__size=4), "--set", "model.num_chunks=2"]
    asked = ("--config", MOE, "--world-size", "256", "--rank", "200", "--traffic", "--memory", *sized)
    facts = counted(capsys, *asked)

    found = {(row["purpose"], row["op"]): (row["group"], row["calls"], row["bytes"]) for row in facts["traffic"]}
    passes = MICRO_BATCHES * 8  # 8 of the 32 layers are here, in two chunks
    assert facts["pipeline"] == {"schedule": "interleaved", "stage": 3, "layers": [[12, 15], [28, 31]]}
    for purpose in ("rows to their experts", "gradients of the rows of experts"):
        assert found[purpose, "all_to_all"] == ("expert", passes, passes * 2 * HIDDEN)
    for purpose, op, group, chunks in (  # the second chunk is the last: forward it yields the loss
        ("activations to the next chunk", "recv", "pipeline", 2),
        ("activations to the next chunk", "send", "pipeline_down", 1),
        ("gradients to the chunk before", "send", "pipeline_down", 2),
        ("gradients to the chunk before", "recv", "pipeline", 1),
    ):
        assert found[purpose, op] == (group, 4 * chunks, 4 * chunks * HIDDEN)
    (parameters,) = (row["bytes"] for row in facts["memory"] if row["what"] == "parameters")
    attention, norms = (WQKV + WO) // 2, 2 * 4096
    router = 8 * 4096 * 2  # in float32
    assert parameters == 2 * (8 * (EXPERT + attention + norms + router) + 4096 + 32000 * 4096)

    out = answer(capsys, *asked)
    assert "stage    3 of 4 (interleaved): layers 12-15 and 28-31\n" in out
    assert "rows of experts: as if all experts got the same" in out
    lines = [line.split() for line in out.splitlines()]
    assert "activations to the next chunk send pipeline_down 4 4 268,435,456 67,108,864".split() in lines


def test_both_as_tables(capsys):
    sized = sets(tensor__size=2, zero1__size=2)
    out = answer(capsys, "--config", CONFIG, "--world-size", "8", "--traffic", "--memory", *sized)

    traffic, _, holdings = out.partition("memory of rank 0")
    assert ["gradient", "norm", "all_reduce", "world", "8", "1", "4", "4"] in [
        line.split() for line in traffic.split("\n")
    ]
    sizes = [int(line.split("  ")[1].replace(",", "")) for line in re.sub(" {3,}", "  ", holdings).splitlines()[1:]]
    assert len(sizes) == 6 and sum(sizes[:-1]) == sizes[-1] > 0
    assert "what they share" not in out


def test_what_cannot_be_trained_is_not_counted(capsys):
    assert (
        main(["topology", "--config", CONFIG, "--world-size", "8", "--traffic", "--set", "model_type=NO_SUCH"]) == 2
    )
    out, err = capsys.readouterr()
    assert out == "" and "model_type='NO_SUCH': this model family is not supported yet" in err
