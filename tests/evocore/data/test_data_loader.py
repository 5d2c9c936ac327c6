"""The loader: ahead of the consumer, exact about its state, honest about errors, gone when closed."""

import gc
import threading
import time

import pytest

from evocore.data.loader import TrainLoader
from evocore.data.random_documents import RandomDocuments
from evocore.data.sampler import Sampler, SkipBatches
from evocore.data.stream_packing import DocumentPacking


class Counting:
    """A packing that remembers which packs were made, and fails at one of them."""

    def __init__(self, fail_at=10**9):
        documents = RandomDocuments(count=64, max_length=4, vocab_size=50, seed=1, fixed_length=True)
        self.inner = DocumentPacking(documents, seq_len=4, micro_bsz=1, seed=1)
        self.made, self.fail_at = [], fail_at

    def __len__(self):
        return len(self.inner)

    def read(self, numbers):
        if len(self.made) >= self.fail_at:
            raise OSError("the disk is gone")
        self.made += numbers
        return self.inner.read(numbers)


def make(prefetch, packing=None, skip="", state=None, micro_num=2):
    packing = packing or Counting()
    sampler = Sampler(len(packing), 1, micro_num, 0, 1, seed=5, skip=SkipBatches.parse(skip))
    if state is not None:
        sampler.load_state_dict(state)
    return TrainLoader(packing, sampler, prefetch)


def take(loader, count):
    return [[batch.tokens_T.tolist() for batch in next(loader).micro_batches] for _ in range(count)]


def wait_until(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name == "evocore-data"]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_batches_come_in_order_whatever_is_prepared_ahead(prefetch):
    packing = Counting()
    with make(prefetch, packing) as loader:
        batches = [next(loader) for _ in range(40)]

    assert [batch.batch_count for batch in batches] == list(range(40))
    assert not any(batch.skipped for batch in batches)
    shown = [batch.tokens_T.tolist() for step in batches for batch in step.micro_batches]
    assert shown == [packing.inner[number].tokens_T.tolist() for number in packing.made[:80]]
    assert len(shown) == 80


@pytest.mark.parametrize("prefetch", [0, 3])
def test_the_state_is_that_after_the_last_batch_handed_out(prefetch):
    with make(0) as plain:
        expected = take(plain, 12)
    packing = Counting()
    with make(prefetch, packing) as loader:
        assert loader.state_dict()["batch_count"] == 0
        first = take(loader, 5)
        wait_until(lambda: len(packing.made) == 2 * (5 + prefetch))
        state = loader.state_dict()
    assert state["batch_count"] == 5 and state["consumed"] == 10

    with make(prefetch, state=state) as resumed:
        assert resumed.state_dict() == state
        assert first + take(resumed, 7) == expected


def test_no_more_is_prepared_than_was_asked_for():
    packing = Counting()
    with make(3, packing) as loader:
        next(loader)
        wait_until(lambda: len(packing.made) == 8)
        time.sleep(0.05)
        assert len(packing.made) == 8


def test_a_skipped_batch_is_not_read_but_counts():
    packing = Counting()
    with make(0, packing, skip="1-2") as loader:
        steps = [next(loader) for _ in range(4)]

    assert [(step.skipped, len(step.micro_batches), step.batch_count) for step in steps] == [
        (False, 2, 0),
        (True, 0, 1),
        (True, 0, 2),
        (False, 2, 3),
    ]
    assert len(packing.made) == 4
    assert loader.state_dict()["consumed"] == 8


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_error_reaches_the_consumer_after_the_batches_before_it(prefetch):
    loader = make(prefetch, Counting(fail_at=4))

    take(loader, 2)
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            next(loader)
    assert loader.state_dict()["batch_count"] == 2
    loader.close()


def test_closing_ends_the_thread_and_the_batches():
    loader = make(2)
    take(loader, 1)
    assert len(data_threads()) == 1

    loader.close()
    loader.close()

    assert not data_threads()
    assert list(loader) == []


def test_a_loader_that_is_dropped_takes_its_thread_along():
    loader = make(2)
    take(loader, 1)
    del loader
    gc.collect()

    wait_until(lambda: not data_threads())
    assert not data_threads()
