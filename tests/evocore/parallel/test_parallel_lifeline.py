"""The ring in one process: who may join it, and what goes around."""

import json
import queue
import socket
import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from evocore.errors import UserError
from evocore.parallel.launch import LaunchEnvironment
from evocore.parallel.lifeline import Failure, Lifeline

TIMEOUT = timedelta(seconds=20)


class Rank(threading.Thread):
    """Joins the ring, which takes two, and keeps what it learns."""

    def __init__(self, store, rank, size):
        super().__init__()
        self.launch = LaunchEnvironment(rank, rank, size, size, "127.0.0.1", 1)
        self.store, self.learned = store, queue.Queue()
        self.start()

    def run(self):
        self.lifeline = Lifeline(self.store, self.launch, self.learned.put, TIMEOUT)


def ring(size):
    store = dist.HashStore()
    ranks = [Rank(store, rank, size) for rank in range(size)]
    for rank in ranks:
        rank.join()
    return ranks


def test_failure_goes_around_once():
    ranks = ring(4)
    failure = Failure(2, "with ünicode and\na line break", 2)
    ranks[2].lifeline.spread(failure)

    for rank in (0, 1, 3):
        assert ranks[rank].lifeline.failure(5) == failure
        assert ranks[rank].learned.get(timeout=5) == failure and ranks[rank].learned.empty()
    assert ranks[2].lifeline.failure(0.1) is None and ranks[2].learned.empty()
    for rank in ranks:
        rank.lifeline.leave()


def test_leaving_is_no_failure_to_those_who_stay():
    ranks = ring(3)
    ranks[0].lifeline.leave()

    assert ranks[1].lifeline.failure(0.1) is None and ranks[2].lifeline.failure(0.1) is None
    ranks[1].lifeline.spread(Failure(1, "later", 1))
    assert ranks[2].lifeline.failure(5) == Failure(1, "later", 1)
    ranks[1].lifeline.leave()
    ranks[2].lifeline.leave()
    assert ranks[0].learned.empty()


@pytest.mark.parametrize("greeting", [b"", b"0" * 32, b"0" * 500])
def test_stranger_is_turned_away(greeting):
    store = dist.HashStore()
    first = Rank(store, 0, 2)
    store.wait(["evocore/lifeline/0"], TIMEOUT)
    address = json.loads(store.get("evocore/lifeline/0"))
    with socket.create_connection((address["host"], address["port"])) as stranger:
        stranger.sendall(greeting)
        stranger.shutdown(socket.SHUT_WR)
        second = Rank(store, 1, 2)
        first.join()
        second.join()

    second.lifeline.spread(Failure(1, "heard", 1))
    assert first.lifeline.failure(5) == Failure(1, "heard", 1)
    first.lifeline.leave()
    second.lifeline.leave()


def test_rank_that_cannot_be_reached_is_named():
    store = dist.HashStore()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    store.set("evocore/lifeline/1", json.dumps({"host": "127.0.0.1", "port": port, "word": "w"}))
    with pytest.raises(UserError, match=f"rank 0 cannot reach rank 1 at 127.0.0.1:{port}"):
        Lifeline(store, LaunchEnvironment(0, 0, 2, 2, "127.0.0.1", 1), print, TIMEOUT)
