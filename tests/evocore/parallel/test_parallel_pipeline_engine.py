"""The engine against PyTorch's schedules and against one process, bit for bit; and what PyTorch's do wrong."""

import parallel_pipeline_runs as runs
import pytest
import torch

SCHEDULES = [("1F1B", 1), ("interleaved", 2), ("ZBH1", 1), ("ZBV", 2)]
UNEQUAL = [5, 3, 8, 1, 6]


def merged(results):
    losses, gradients = {}, {}
    for one in results:
        losses |= one[0]
        gradients |= one[1]
    return losses, gradients


def assert_same(left, right):
    assert left[0] == right[0] and left[1].keys() == right[1].keys()
    for key, gradient in left[1].items():
        assert torch.equal(gradient, right[1][key]), key


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize(("name", "chunks"), [("1F1B", 1), ("interleaved", 2), ("ZBV", 2)])
def test_losses_and_gradients_are_pytorchs_bit_for_bit(name, chunks, world, ranks):
    lengths = [runs.TOKENS] * 8

    assert_same(
        merged(ranks(world, runs.ours, name, chunks, lengths)), merged(ranks(world, runs.theirs, name, chunks, 8))
    )


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_shapes_may_change_from_micro_batch_to_micro_batch_and_steps_repeat(name, chunks, ranks):
    expected = runs.alone(2 * chunks, UNEQUAL)
    results = ranks(2, runs.ours, name, chunks, UNEQUAL, steps=2)

    assert_same(merged(results), expected)
    evaluated = {micro: loss for *_, losses in results for micro, loss in losses.items()}
    assert evaluated == expected[0]


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_fewer_micro_batches_than_stages_come_through(name, chunks, ranks):
    assert_same(merged(ranks(4, runs.ours, name, chunks, [4, 2])), runs.alone(4 * chunks, [4, 2]))


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_memory_is_bounded_by_the_schedule_and_every_backward_runs_once(name, chunks, ranks):
    few, many = (ranks(2, runs.watched, name, chunks, count) for count in (8, 24))

    for (peak, bound, backwards, left), (later_peak, _, _, _) in zip(few, many, strict=True):
        assert peak == later_peak <= bound
        assert backwards == [8] * chunks and left == 0


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_the_last_gradient_of_each_parameter_is_announced(name, chunks, ranks):
    for told in ranks(2, runs.last_of, name, chunks, 5):
        assert len(told) == 4 * chunks
        assert all(inside == [False] * 4 + [True] for inside in told.values())


@pytest.mark.parametrize(("name", "chunks"), SCHEDULES)
def test_one_message_each_way_between_chunks_and_the_next_input_travels_meanwhile(name, chunks, ranks):
    results = ranks(2, runs.messages, name, chunks, 8)

    crossings = {"1F1B": 1, "interleaved": 3, "ZBH1": 1, "ZBV": 2}[name]
    assert sum(counts["send"] for counts, _ in results) == 2 * 8 * crossings
    assert all(counts["send"] == counts["recv"] for counts, _ in results)
    assert all(overlapped >= 6 for _, overlapped in results)
