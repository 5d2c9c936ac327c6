"""Runs a function on several processes with a process group, fast enough to do it in every test.

Starting a Python process and importing PyTorch takes seconds; forking one from a server that has imported it takes
milliseconds. The processes of a pool are kept, and each call gets a process group of its own.
"""

from __future__ import annotations

import gc
import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

PRELOADED = ("evocore.testing.distributed",)


class RankError(AssertionError):
    """A rank raised, died, or was not done in time.

    Attributes:
        rank: the first rank that failed.
        error: what it raised, if that could be sent back.
    """

    def __init__(self, rank: int, text: str, error: BaseException | None = None) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank, self.error = rank, error


class RankPool:
    """Processes that run functions as the ranks of a process group.

    Args:
        world_size: how many.
        backend: what ``torch.distributed.init_process_group`` calls the library.
        preload: modules that the processes find imported, besides PyTorch; the first pool of a program decides.
    """

    def __init__(self, world_size: int, *, backend: str = "gloo", preload: Sequence[str] = ()) -> None:
        self.world_size, self.backend = world_size, backend
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*PRELOADED, *preload])
        self._processes: list[Any] = []
        self._connections: list[Connection] = []
        self._folder = tempfile.TemporaryDirectory(prefix="evocore-ranks-")
        self._calls = 0

    def __enter__(self) -> RankPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def run(self, function: Callable[..., Any], /, *args: Any, timeout: float = 60.0, **kwargs: Any) -> list[Any]:
        """Call ``function(*args, **kwargs)`` on every rank, inside a process group of its own.

        Args:
            function: a function at the top level of a module, which the other processes can import; it, its arguments
                and what it returns must be picklable.
            timeout: seconds until all ranks must be done.

        Returns:
            What each rank returned, in rank order.

        Raises:
            RankError: with the traceback of the first rank that failed; the processes are ended, and the next call
                starts new ones.
        """
        if not self._processes:
            self._start()
        self._calls += 1
        store = str(Path(self._folder.name) / f"store-{self._calls}")
        message = pickle.dumps((function, args, kwargs, store, timeout))
        with ExitStack() as unless_all_returned:
            unless_all_returned.callback(self._end)
            for connection in self._connections:
                connection.send_bytes(message)
            results = self._collect(time.monotonic() + timeout)
            unless_all_returned.pop_all()
        return results

    def close(self) -> None:
        """End the processes."""
        self._end()
        self._folder.cleanup()

    def _start(self) -> None:
        for rank in range(self.world_size):
            ours, theirs = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(theirs, rank, self.world_size, self.backend), daemon=True
            )
            process.start()
            theirs.close()
            self._processes.append(process)
            self._connections.append(ours)

    def _end(self) -> None:
        for connection in self._connections:
            connection.close()
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._connections = [], []

    def _collect(self, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        while len(results) < self.world_size:
            late = [rank for rank in range(self.world_size) if rank not in results]
            ready = wait([self._connections[rank] for rank in late], timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                raise RankError(late[0], f"not done in time (waiting for ranks {late})")
            reports = [(rank, self._receive(rank)) for rank in late if self._connections[rank] in ready]
            for rank, report in sorted(reports, key=lambda pair: pair[1].moment):
                if report.failure is not None:
                    self._raise_if_one_died()  # which is why the others fail, wherever it comes in the queue
                    raise RankError(rank, report.failure, _unpickled_error(report.error))
                results[rank] = report.value
        return [results[rank] for rank in range(self.world_size)]

    def _receive(self, rank: int) -> _Report:
        try:
            report: _Report = pickle.loads(self._connections[rank].recv_bytes())
        except EOFError:
            return _Report(failure="the process ended")
        return report

    def _raise_if_one_died(self) -> None:
        wait([process.sentinel for process in self._processes], timeout=0.1)
        for rank, process in enumerate(self._processes):
            if process.exitcode is not None:
                raise RankError(rank, f"the process ended with exit code {process.exitcode}")


class RankPools:
    """One pool per world size, started when first used."""

    def __init__(self, *, backend: str = "gloo", preload: Sequence[str] = ()) -> None:
        self._backend, self._preload = backend, preload
        self._pools: dict[int, RankPool] = {}

    def run(self, world_size: int, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Any]:
        """``RankPool.run`` on ``world_size`` processes."""
        if world_size not in self._pools:
            self._pools[world_size] = RankPool(world_size, backend=self._backend, preload=self._preload)
        return self._pools[world_size].run(function, *args, **kwargs)

    def close(self) -> None:
        """End all processes."""
        for pool in self._pools.values():
            pool.close()


@dataclass
class _Report:
    """What a rank sends back: ``failure`` is a traceback, ``error`` the pickled exception if it can be pickled."""

    value: Any = None
    failure: str | None = None
    error: bytes = b""
    moment: float = field(default_factory=time.monotonic)


def _serve(connection: Connection, rank: int, world_size: int, backend: str) -> None:
    """The life of one process: a call, a report, the next call, until the other end closes."""
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is imported stays: to look through it after each call would take longer than many a call
    try:
        while True:
            connection.send_bytes(_answer(connection.recv_bytes(), rank, world_size, backend))
    except (EOFError, ConnectionError):
        return


def _answer(message: bytes, rank: int, world_size: int, backend: str) -> bytes:
    try:
        function, args, kwargs, path, timeout = pickle.loads(message)
        store = dist.FileStore(path, world_size)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout)
        )
        report = pickle.dumps(_Report(function(*args, **kwargs)))
        dist.barrier()  # nobody closes its connections while another still uses them
        dist.destroy_process_group()
        gc.collect()  # process groups that are parts of cycles: their threads wake up a hundred times a second
    except Exception as error:  # noqa: BLE001 - whatever the function under test raises is reported
        # The process group stays: a peer must not see a broken connection before the caller sees this report.
        return pickle.dumps(_Report(failure=traceback.format_exc(), error=_pickled_error(error)))
    return report


def _pickled_error(error: Exception) -> bytes:
    try:
        return pickle.dumps(error)
    except Exception:  # noqa: BLE001 - an exception may hold anything; its traceback is sent all the same
        return b""


def _unpickled_error(error: bytes) -> BaseException | None:
    try:
        return pickle.loads(error) if error else None
    except Exception:  # noqa: BLE001 - an exception whose constructor takes other arguments cannot be rebuilt
        return None
