"""Tells every rank at once that one has failed or died.

A process that is killed leaves nothing behind but closed connections, and whether a library of collectives notices is
its own affair: some ranks get an error that names nobody, others wait for a time-out of half an hour. So each rank
keeps a connection to the next, in a ring, on which nothing is sent until a rank fails or leaves: two connections per
rank, however many there are, and a dead rank leaves a line on which its two neighbours still reach all others.

What closes no connection is not noticed: a machine that lost its power or its network, a process that is stopped or
hangs. Launchers watch machines, and collectives have their time-out.
"""

from __future__ import annotations

import ipaddress
import json
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from evocore.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

    from evocore.parallel.launch import LaunchEnvironment

FAREWELL = b"{}\n"
CONNECTING = 60.0
"""Seconds in which a rank that has published its address must answer."""


@dataclass(frozen=True)
class Failure:
    """The first failure of a run.

    Attributes:
        rank: whose it is.
        told: what to say of it on the other ranks.
        code: the exit code that all ranks end with.
    """

    rank: int
    told: str
    code: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Failure:
        values = json.loads(text)
        return cls(int(values["rank"]), str(values["told"]), int(values["code"]))


class Lifeline:
    """This rank's two connections of the ring, and the thread that listens to them.

    Args:
        store: where ranks find one another's addresses; empty of an earlier attempt's.
        launch: this process among at least two.
        on_failure: called at most once, by the listening thread, with the failure of another rank.
        timeout: how long the others may take to come.

    Raises:
        UserError: if the next rank cannot be reached.
    """

    def __init__(
        self, store: Store, launch: LaunchEnvironment, on_failure: Callable[[Failure], None], timeout: timedelta
    ) -> None:
        self._rank, self._on_failure = launch.rank, on_failure
        self._failure: Failure | None = None
        self._known = threading.Event()
        self._over = False
        before, after = (launch.rank - 1) % launch.world_size, (launch.rank + 1) % launch.world_size
        word = uuid.uuid4().hex
        host, listener = _listen(launch)
        with listener:
            address = {"host": host, "port": listener.getsockname()[1], "word": word}
            store.set(f"evocore/lifeline/{launch.rank}", json.dumps(address))
            store.wait([f"evocore/lifeline/{after}"], timeout)
            onward = _connect(launch.rank, after, json.loads(store.get(f"evocore/lifeline/{after}")))
            inward = _accept(listener, word, time.monotonic() + timeout.total_seconds())
        self._neighbours = {inward: before, onward: after}
        self._thread = threading.Thread(target=self._listen_to_neighbours, name="evocore-lifeline", daemon=True)
        self._thread.start()

    def failure(self, seconds: float) -> Failure | None:
        """The failure of another rank, if one is known within so many seconds."""
        self._known.wait(seconds)
        return self._failure

    def spread(self, failure: Failure) -> None:
        """Tell all ranks of this rank's failure; what happens to others from now on does not matter here."""
        self._over = True
        self._send(failure.to_json().encode() + b"\n", list(self._neighbours))

    def leave(self) -> None:
        """Say farewell: what happens from now on is no failure, here or to the others."""
        self._over = True
        self._send(FAREWELL, list(self._neighbours))
        for connection in self._neighbours:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the neighbour has left, too
        self._thread.join()

    def _send(self, message: bytes, connections: list[socket.socket]) -> None:
        for connection in connections:
            try:
                connection.sendall(message)
            except OSError:
                pass  # that neighbour is gone: its other neighbour sees this, too

    def _listen_to_neighbours(self) -> None:
        received = dict.fromkeys(self._neighbours, b"")
        with selectors.DefaultSelector() as selector:
            for connection in self._neighbours:
                selector.register(connection, selectors.EVENT_READ, connection)
            while selector.get_map():
                for key, _ in selector.select():
                    connection = key.data
                    data = _receive(connection)
                    received[connection] += data
                    *messages, received[connection] = received[connection].split(b"\n")
                    left = b"{}" in messages
                    for message in messages:
                        if message != b"{}":
                            self._learn(Failure.from_json(message), connection)
                    if left or not data:
                        selector.unregister(connection)
                    if not left and not data:
                        self._learn(_death(self._neighbours[connection]), connection)
        for connection in self._neighbours:
            connection.close()

    def _learn(self, failure: Failure, source: socket.socket) -> None:
        if self._over or self._failure is not None or failure.rank == self._rank:
            return
        self._failure = failure
        self._send(failure.to_json().encode() + b"\n", [other for other in self._neighbours if other is not source])
        self._known.set()
        self._on_failure(failure)


def _death(rank: int) -> Failure:
    return Failure(rank, f"rank {rank} died without a word (killed, or out of memory?)", 1)


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except OSError:
        return b""  # reset: the other end is as gone as if it had been closed


def _listen(launch: LaunchEnvironment) -> tuple[str, socket.socket]:
    """A listening socket, and the host under which the other ranks reach it."""
    family, kind, _, _, master = socket.getaddrinfo(launch.master_addr, launch.master_port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(master)  # sends nothing: it only picks the address that this machine has towards rank 0
        own = probe.getsockname()[0]
    if launch.local_world_size == launch.world_size:
        return own, socket.create_server((own, 0), family=family)
    # On the machine of rank 0 the way there is a loopback, which others cannot take; they know it by its name.
    host = launch.master_addr if ipaddress.ip_address(own).is_loopback else own
    return host, socket.create_server(("", 0), family=family)


def _connect(rank: int, other: int, address: dict[str, str]) -> socket.socket:
    try:
        connection = socket.create_connection((address["host"], int(address["port"])), CONNECTING)
    except OSError as error:
        raise UserError(
            f"rank {rank} cannot reach rank {other} at {address['host']}:{address['port']}: {error}",
            "machines that reach one another over TCP on any port",
            "open the network between the machines of the run, or name rank 0 by an address in it with --host",
        ) from error
    connection.settimeout(None)
    connection.sendall(address["word"].encode())
    return connection


def _accept(listener: socket.socket, word: str, deadline: float) -> socket.socket:
    """The connection of the rank before this one; strangers do not know the word."""
    while True:
        listener.settimeout(max(0.01, deadline - time.monotonic()))
        connection, _ = listener.accept()
        connection.settimeout(CONNECTING)
        greeting = b""
        while len(greeting) < len(word) and (data := _receive(connection)):
            greeting += data[: len(word) - len(greeting)]
        if greeting == word.encode():
            connection.settimeout(None)
            return connection
        connection.close()
