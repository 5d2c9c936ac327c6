"""Several processes: replicated and per-rank tensors, sharded ones in other layouts, and one failure for all."""

import os
import re

import checkpoint_workers as work
import pytest
import torch
from safetensors import safe_open

from evocore.checkpoint.checkpointer import Checkpointer
from evocore.checkpoint.contents import read_contents, verify
from evocore.testing.distributed import RankError, RankPool

# The first use of a DTensor imports torch._dynamo, which takes seconds in every process that has not got it.
PRELOAD = ["torch.distributed.checkpoint", "torch.distributed.tensor", "torch._dynamo"]


@pytest.fixture(scope="module")
def two():
    with RankPool(2, preload=PRELOAD) as pool:
        yield pool


def zeros():
    return {name: torch.zeros_like(tensor) for name, tensor in work.weights().items()}


def keys(path):
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def test_replicas_are_written_once_by_rank_0_and_what_carries_a_rank_by_that_rank(two, tmp_path):
    assert two.run(work.save_replicated, tmp_path, 5) == [str(tmp_path / "5")] * 2

    tensor_files = sorted(path.name for path in (tmp_path / "5").glob("*.safetensors"))
    assert tensor_files == ["tensors-00000-000.safetensors", "tensors-00001-000.safetensors"]
    assert keys(tmp_path / "5" / tensor_files[0]) == set(work.weights()) | {"rng.0"}
    assert keys(tmp_path / "5" / tensor_files[1]) == {"rng.1"}
    contents = read_contents(tmp_path / "5")
    assert contents.manifest.world_size == 2 and verify(tmp_path / "5", hashes=True) == []
    assert two.run(work.load_replicated, tmp_path, 5) == [(True, {"step": 5, "seen.0": 0, "seen.1": 10})] * 2


@pytest.mark.parametrize("placement", ["rows", "columns", "everywhere"])
def test_sharded_tensors_load_into_one_process_and_back(two, tmp_path, placement):
    two.run(work.save_sharded, tmp_path, 1, placement)
    plain = zeros()
    alone = Checkpointer(tmp_path)
    assert alone.load(tmp_path / "1", tensors=plain) == {"step": 1}
    assert all(torch.equal(plain[name], tensor) for name, tensor in work.weights().items())

    alone.save(2, tensors=plain, state={"step": 2})
    assert two.run(work.load_sharded, tmp_path, 2, placement) == [(True, {"step": 2})] * 2


def test_one_sharding_loads_into_another(two, tmp_path):
    two.run(work.save_sharded, tmp_path, 1, "rows")

    shards = sorted(path.name for path in (tmp_path / "1").glob("shards-*"))
    assert shards == ["shards-00000-000.safetensors", "shards-00001-000.safetensors"]
    assert keys(tmp_path / "1" / shards[1]) >= {"uneven@3_0", "half@2_0"}
    assert two.run(work.load_sharded, tmp_path, 1, "columns") == [(True, {"step": 1})] * 2


def test_hybrid_sharding_stores_each_row_once(tmp_path):
    with RankPool(4, preload=PRELOAD) as four:
        four.run(work.save_2d, tmp_path, 1)
    plain = zeros()
    Checkpointer(tmp_path).load(tmp_path / "1", tensors=plain)
    assert all(torch.equal(plain[name], tensor) for name, tensor in work.weights().items())
    assert [chunk.sizes for chunk in read_contents(tmp_path / "1").tensors["half"].chunks] == [(2, 6), (2, 6)]


@pytest.mark.parametrize(
    ("save", "told"),
    [
        (work.save_where_rank_1_hits_a_file_size_limit, "(?s)File too large.*on rank 1"),
        (work.save_where_rank_0_finds_the_disk_full, "(?s)No space left on device.*on rank 0"),
    ],
)
def test_a_rank_that_cannot_write_fails_the_save_on_all_and_leaves_the_last_good_one(two, tmp_path, save, told):
    two.run(work.save_replicated, tmp_path, 1)

    outcomes = two.run(save, tmp_path, 2)

    for kind, text in outcomes:
        assert kind == "SaveError" and re.search(told, text), text
        assert f"the last good checkpoint: {tmp_path / '1'}" in text
    assert os.listdir(tmp_path) == ["1"] and verify(tmp_path / "1", hashes=True) == []
    two.run(work.save_replicated, tmp_path, 2)
    assert two.run(work.load_replicated, tmp_path, 2)[0][0]


@pytest.mark.parametrize(
    ("state", "value"), [(True, (1, 2)), (False, 3), (False, torch.ones(2, dtype=torch.complex64))]
)
def test_what_one_rank_cannot_save_is_every_ranks_mistake(two, tmp_path, state, value):
    outcomes = two.run(work.save_what_rank_1_cannot, tmp_path, state, value)

    assert [kind for kind, _ in outcomes] == ["UserError"] * 2 and all("bad" in text for _, text in outcomes)
    assert not tmp_path.exists() or os.listdir(tmp_path) == []


def test_names_are_compared_over_all_ranks(two, tmp_path):
    two.run(work.save_replicated, tmp_path, 1)

    outcomes = two.run(work.load_with_the_wrong_names, tmp_path, 1)

    for kind, text in outcomes:
        assert kind == "UserError"
        assert "rng.7 is not in the checkpoint; rng.1 is only in the checkpoint\n" in text


def test_all_ranks_pass_over_a_checkpoint_that_one_of_them_finds_altered(two, tmp_path):
    two.run(work.save_replicated, tmp_path, 1)
    two.run(work.save_replicated, tmp_path, 2, 2.0)
    victim = tmp_path / "2" / "tensors-00001-000.safetensors"  # only rank 1 reads it
    victim.write_bytes(victim.read_bytes()[:-1] + b"\x99")

    for newest, used, step, problems, tensor in two.run(work.load_latest_replicated, tmp_path):
        assert newest == 2 and used == 1 and step == 1
        assert problems == [(2, f"{victim.name} was altered: its SHA-256 is not the one in the manifest")]
        assert torch.equal(tensor, work.weights()["uneven"])


def test_what_a_killed_writer_left_is_not_taken_for_a_checkpoint_and_goes_at_the_next_save(two, tmp_path):
    two.run(work.save_replicated, tmp_path, 1)
    with pytest.raises(RankError, match="exit code 9"):
        two.run(work.die_in_the_middle_of_a_save, tmp_path, 2)

    left = [name for name in os.listdir(tmp_path) if name.startswith("2.tmp-")]
    assert len(left) == 1 and [info.step for info in Checkpointer(tmp_path).candidates()] == [1]
    two.run(work.save_replicated, tmp_path, 3)
    assert sorted(os.listdir(tmp_path)) == ["1", "3"]
