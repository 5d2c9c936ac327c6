"""The conformance kit on collectives that are wrong, each in one way: the check that is named must find it."""

from __future__ import annotations

from contextlib import closing

import pytest
import torch.distributed as dist
import wrong_collectives as wrong

from evocore.backends.cpu.device import CPUBackend
from evocore.testing.conformance.collectives import COLLECTIVES, CollectivesChecker
from evocore.testing.conformance.parts import FacilitiesChecker

TIMEOUT = 12.0
"""Seconds: ranks that are at odds wait for one another until then."""


@pytest.fixture(scope="module")
def on_the_processor():
    with closing(FacilitiesChecker(CPUBackend())) as checker:
        yield checker


@pytest.mark.parametrize(("check", "ranks"), COLLECTIVES)
def test_the_processor_passes(check, ranks, on_the_processor):
    finding = on_the_processor.check("collectives", check, ranks)
    assert (finding.verdict, finding.what, finding.ranks) == ("passed", "", ranks)


def test_there_is_a_check_of_each_collective_on_two_ranks_and_on_four():
    assert {ranks for _, ranks in COLLECTIVES} == {1, 2, 4}
    names = {name for name, ranks in COLLECTIVES if ranks == 4}
    assert names == {name for name, ranks in COLLECTIVES if ranks == 2}
    assert {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv"} < names


def fails(backend, check, ranks, what, timeout=TIMEOUT):
    with closing(CollectivesChecker(backend, timeout)) as checker:
        finding = checker.check(check, ranks)
    assert finding.verdict == "failed" and what in finding.what and "\n" not in finding.what, finding.what
    assert (finding.check, finding.ranks) == (check, ranks)
    command = f"evocore conform --backend {backend.name} --part collectives --check {check}"
    assert finding.reproducer == command
    return finding.what


WRONG = [
    (wrong.AvgIsSum, "all_reduce", 2, "of 2: all_reduce avg of bfloat16: 6 instead of 3 at [0, 0]"),
    (wrong.GathersBackwards, "all_gather", 2, "put the shard of rank i at place i of dim 0"),
    (wrong.GathersMemory, "all_gather", 2, "all_gather from a shard with gaps of bfloat16"),
    (wrong.ScattersToTheNext, "reduce_scatter", 4, "reduce_scatter sum of bfloat16"),
    (wrong.ReducesInPlace, "reduce_scatter", 2, "leave the tensor that is reduced as it was"),
    (wrong.WritesBeforeItReads, "reduce_scatter", 2, "write the shard, and nothing else of the tensor, after all"),
    (wrong.SplitsEvenly, "uneven_all_to_all", 2, "all_to_all with uneven splits (all different) of bfloat16"),
    (wrong.BroadcastsFromTheFirst, "broadcast", 2, "broadcast from rank 1 of bfloat16: 0 instead of 6 at [0, 0]"),
    (wrong.SendsOutOfOrder, "send_recv", 2, "recv of bfloat16: 1 instead of 0 at [0, 0] (12 of 12 differ)"),
    (wrong.RefusesWhatIsEmpty, "empty", 2, "all_gather of no elements of bfloat16: raised RuntimeError: nothing to"),
    (wrong.AddsUpCoarsely, "large", 2, "all_reduce of a large tensor of float32: an error is"),
    (wrong.EachItsOwnSum, "large", 2, "of float32: ranks end with different bits"),
    (wrong.HandleReturnsAtOnce, "asynchronous", 2, "wait() for all_gather of"),
    (wrong.NeverAsynchronous, "at_once", 2, "rank 0 is still in a call with asynchronous=True"),
    (wrong.AsksEverybody, "groups", 2, "all_reduce in the group of ranks ["),
    (wrong.LetsPass, "barrier_and_agree", 2, "a rank left the barrier"),
    (wrong.AgreesWithItself, "barrier_and_agree", 2, "return the texts of all ranks, in their order"),
    (wrong.TakesGaps, "refusals", 2, "all_reduce into a tensor with gaps: nothing was refused"),
    (wrong.LeavesOutWhoSendsNothing, "uneven_all_to_all", 2, "(nothing from rank 0) of bfloat16: 99 instead of 6"),
    (wrong.ClaimsNothing, "broadcast", 2, "dtypes() of the collectives lacks float32"),
    (wrong.ClaimsWhatItLacks, "all_reduce", 2, "all_reduce sum of int16: raised RuntimeError"),
    (wrong.Dies, "broadcast", 2, "on rank 1 of 2: the process ended with exit code 7"),
    (wrong.LostAlone, "alone", 1, "without process groups: 0 instead of 1 at [0, 1]"),
]


@pytest.mark.parametrize(("collectives", "check", "ranks", "what"), WRONG)
def test_what_is_wrong_is_found(collectives, check, ranks, what):
    fails(wrong.backend_with(collectives), check, ranks, what)


def test_ranks_that_wait_for_ever_are_named():
    backend = wrong.backend_with(wrong.NeverReturns)
    fails(backend, "broadcast", 2, "on rank 0 of 2: not done in time (waiting for ranks [0, 1])", timeout=2.0)


def test_a_backend_that_is_not_available_in_other_processes_is_found():
    fails(wrong.OnlyHere(), "broadcast", 2, "why_unavailable() is 'there is one already' in another process")


@pytest.mark.parametrize(("ranks", "what"), [(2, "2 ranks need 2 devices, found 1"), (4, "4 ranks need 4 devices")])
def test_a_machine_with_too_few_devices_cannot_tell(ranks, what):
    with closing(CollectivesChecker(wrong.OneDevice(), TIMEOUT)) as checker:
        finding = checker.check("broadcast", ranks)
        assert finding.verdict == "skipped" and finding.what.startswith(what)
        assert checker.check("alone", 1).verdict == "passed"


def test_a_program_with_process_groups_cannot_tell_how_one_process_fares_alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with closing(CollectivesChecker(CPUBackend())) as checker:
            finding = checker.check("alone", 1)
    finally:
        dist.destroy_process_group()
    assert (finding.verdict, finding.what) == ("skipped", "this program has process groups")
