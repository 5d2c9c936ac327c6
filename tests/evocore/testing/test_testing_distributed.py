"""The harness for tests on several processes: what comes back, and what a failure looks like."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from evocore.errors import UserError
from evocore.testing.distributed import RankError, RankPool


def sum_of_ranks(scale):
    total = torch.tensor([float(dist.get_rank() * scale)])
    dist.all_reduce(total)
    return os.getpid(), total


def fail_on(rank):
    if dist.get_rank() == rank:
        raise UserError("key", "value", "mend it")
    dist.barrier()


def die_on(rank):
    if dist.get_rank() == rank:
        os._exit(9)
    dist.barrier()


def return_what_cannot_be_pickled():
    return lambda: None


@pytest.fixture(scope="module")
def pool():
    with RankPool(2) as pool:
        yield pool


def test_results_come_back_in_rank_order_and_processes_are_reused(pool):
    (first, one), (second, _) = pool.run(sum_of_ranks, 1)
    again = pool.run(sum_of_ranks, 10)

    assert one.item() == 1 and again[1][1].item() == 10
    assert [pid for pid, _ in again] == [first, second] and first != second != os.getpid()


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_that_raised_is_told_from_those_that_it_left_hanging(pool, rank):
    with pytest.raises(RankError, match="(?s)in fail_on.*mend it") as failure:
        pool.run(fail_on, rank)

    assert failure.value.rank == rank
    assert isinstance(failure.value.error, UserError) and failure.value.error.fix == "mend it"
    assert pool.run(sum_of_ranks, 1)[0][1].item() == 1  # the next call finds new processes


def test_a_process_that_dies_is_named_with_its_exit_code(pool):
    with pytest.raises(RankError, match="rank 1: the process ended with exit code 9"):
        pool.run(die_on, 1)


def test_ranks_that_are_late_are_named_and_ended(pool):
    start = time.monotonic()
    with pytest.raises(RankError, match=r"waiting for ranks \[0, 1\]"):
        pool.run(time.sleep, 30, timeout=0.5)
    assert time.monotonic() - start < 5


def test_a_result_that_cannot_be_sent_is_a_failure_of_its_rank(pool):
    with pytest.raises(RankError, match="return_what_cannot_be_pickled"):
        pool.run(return_what_cannot_be_pickled)
