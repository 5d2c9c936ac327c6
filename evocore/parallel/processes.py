"""Starts the ranks of a run on one machine and answers for them with one exit code.

torchrun restarts processes and finds other machines; it also ends them 30 seconds after a signal, saved or not, and
its own exit code does not tell a user's mistake from ours. For several processes on one machine this is all that is
needed, and it starts without importing PyTorch.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

STOPPED = 75
"""Exit code of a run that stopped on request with everything saved."""
GRACE = 10.0
"""Seconds that the other ranks get when one has failed: they cannot go on without it."""
POLL = 0.05


def run_processes(command: Sequence[str], count: int, environ: Mapping[str, str] = os.environ) -> int:
    """Run ``command`` ``count`` times, as the ranks of one run, and wait.

    SIGINT, SIGTERM and SIGHUP are passed on to every rank, as often as they come; the ranks get the time they need.

    Returns:
        0 if all ranks returned 0; 75 if one stopped on request and none failed; 128 + N if signal N was passed on and
        ended a rank, as shells count; otherwise the exit code of the first that failed, 1 if another signal ended it
        (which is told on standard error).
    """
    shared = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS") or str(max(1, len(os.sched_getaffinity(0)) // count)),
    }
    ranks: list[subprocess.Popen[bytes]] = []
    with _signals_passed_on(ranks) as passed_on:
        for rank in range(count):
            own = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # A session of its own: the terminal's Ctrl-C would otherwise reach each rank twice.
            ranks.append(subprocess.Popen(command, env={**environ, **own}, start_new_session=True))
        try:
            return _wait(ranks, passed_on)
        finally:
            _end(ranks, grace=0.0)


def _wait(ranks: list[subprocess.Popen[bytes]], passed_on: list[int]) -> int:
    result, running = 0, dict(enumerate(ranks))
    while running:
        ended = {rank: code for rank, process in running.items() if (code := process.poll()) is not None}
        running = {rank: process for rank, process in running.items() if rank not in ended}
        if STOPPED in ended.values():
            result = STOPPED
        failed = {rank: code for rank, code in ended.items() if code not in (0, STOPPED)}
        if failed:
            for rank, code in failed.items():
                if code < 0 and -code not in passed_on:
                    print(f"evocore: rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
            _end(list(running.values()), GRACE)
            first = min(failed.values())  # a signal came from outside: what others say after it is its consequence
            return 128 - first if -first in passed_on else max(first, 1)
        time.sleep(POLL)
    return result


def _end(ranks: list[subprocess.Popen[bytes]], grace: float) -> None:
    for process in ranks:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(process.poll() is None for process in ranks):
        time.sleep(POLL)
    for process in ranks:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def _signals_passed_on(ranks: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    passed_on: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed_on.append(number)
        for process in ranks:
            if process.poll() is None:
                process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, pass_on) for number in numbers]
    try:
        yield passed_on
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
