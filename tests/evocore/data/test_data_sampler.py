"""The global order: one for all numbers of data ranks, resumed from a few integers."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evocore.data.sampler import RampUp, Sampler, SkipBatches
from evocore.errors import UserError


def make(rank=0, size=1, micro_num=1, packs=50, seed=3, **more):
    return Sampler(packs, 77, micro_num, rank, size, seed, **more)


def draws(size, micro_num, steps, packs=50, state=None, **more):
    """Packs of each step, rank after rank."""
    samplers = [make(rank, size, micro_num, packs, **more) for rank in range(size)]
    for sampler in samplers:
        if state is not None:
            sampler.load_state_dict(state)
    taken = [[pack for sampler in samplers for pack in sampler.draw().packs.tolist()] for _ in range(steps)]
    states = {json.dumps(sampler.state_dict()) for sampler in samplers}
    assert len(states) == 1, "the state is the same on every rank"
    return taken, json.loads(states.pop())


@settings(max_examples=20, deadline=None)
@given(st.integers(12, 80), st.integers(1, 15), st.integers(0, 2**32))
def test_each_step_takes_the_same_packs_for_every_number_of_ranks(packs, steps, seed):
    one, state = draws(1, 12, steps, packs, seed=seed)

    for size in (2, 3, 12):
        assert draws(size, 12 // size, steps, packs, seed=seed) == (one, state)


@settings(max_examples=30, deadline=None)
@given(st.integers(8, 60), st.integers(0, 15), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(packs, before, old_size, new_size):
    whole, _ = draws(1, 8, before + 9, packs)

    first, state = draws(old_size, 8 // old_size, before, packs)
    second, _ = draws(new_size, 8 // new_size, 9, packs, state=state)

    assert first + second == whole


def test_an_epoch_takes_every_pack_once_and_drops_the_rest():
    taken, state = draws(2, 3, 8, packs=26)

    epochs = [sum(taken[:4], []), sum(taken[4:], [])]
    for epoch in epochs:
        assert len(set(epoch)) == 24 and set(epoch) <= set(range(26))
    assert epochs[0] != epochs[1]
    assert state == {"epoch": 1, "consumed": 24, "seed": 3, "batch_count": 8, "num_packs": 26, "fingerprint": 77}


def test_the_batch_grows_as_the_ramp_up_says():
    ramp = RampUp.parse("1 2 3", micro_num=6)
    sampler = make(1, 2, 6, packs=100, ramp_up=ramp)

    assert [len(sampler.draw().packs) for _ in range(11)] == [1, 1, 1, 3, 3, 3, 5, 5, 5, 6, 6]
    assert sampler.consumed == 2 * (3 + 9 + 15 + 12)
    assert [RampUp.parse("", 4).at(batch, 4) for batch in (0, 9)] == [4, 4]


def test_skipped_batches_are_consumed_and_marked():
    plain = [make(packs=40).draw] * 6
    skipping = make(packs=40, skip=SkipBatches.parse("1-2, 4"))

    made = [skipping.draw() for _ in range(6)]

    assert [(draw.batch_count, draw.skipped) for draw in made] == [
        (0, False),
        (1, True),
        (2, True),
        (3, False),
        (4, True),
        (5, False),
    ]
    assert [draw.packs.tolist() for draw in made] == [draw().packs.tolist() for draw in plain]


def test_nothing_is_skipped_by_an_empty_text():
    assert 0 not in SkipBatches.parse("") and 3 not in SkipBatches.parse(" ")


@pytest.mark.parametrize("text", ["3-1", "a", "1-2-3", "5,3", "1-4,4", "-3", "1.5"])
def test_bad_skip_batches_are_named(text):
    with pytest.raises(UserError, match="data.skip_batches is"):
        SkipBatches.parse(text)


@pytest.mark.parametrize("text", ["1", "1 2", "1 2 x", "0 1 10", "5 1 10", "1 1 0", "1 -1 5"])
def test_a_bad_ramp_up_is_named(text):
    with pytest.raises(UserError, match="data.rampup_batch_size is"):
        RampUp.parse(text, micro_num=4)


def test_too_little_data_for_a_step_is_said_at_the_start():
    with pytest.raises(UserError, match="makes 7 packs, one step takes 8 .data.micro_num 4 x 2 data ranks."):
        make(0, 2, 4, packs=7)


@pytest.mark.parametrize("key", ["num_packs", "fingerprint", "seed"])
def test_other_data_than_that_of_the_state_is_refused(key):
    sampler = make()

    with pytest.raises(UserError, match=f"not that of the checkpoint: {key} was 5, is "):
        sampler.load_state_dict({**sampler.state_dict(), key: 5})
