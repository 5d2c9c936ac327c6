"""Connects the processes of a run, and ends all of them when one fails.

Left alone, the others would sit in a collective until their connection breaks or a time-out passes, and end with an
error that names nobody, above or below the one that matters. Here the failed rank tells its error first; then the
others learn of it, say in one line whose failure it was, and end with the same exit code.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from evocore.errors import UserError, traceback_wanted
from evocore.parallel.launch import LaunchEnvironment, destroy, init_process_group, is_connected
from evocore.parallel.lifeline import Failure, Lifeline

if TYPE_CHECKING:
    from torch.distributed import Store

    from evocore.backend import Backend

SETTLE = 0.5
"""Seconds to learn whether another rank's failure is the reason of one's own."""
GRACE = 5.0
"""Seconds from the first failure until a rank that has not ended by itself is ended."""
LONGEST = 300
"""Characters of an error that the other ranks repeat."""


@contextmanager
def process_group(
    launch: LaunchEnvironment, backend: Backend, timeout: timedelta = timedelta(minutes=30)
) -> Iterator[None]:
    """Connect the processes of a run while the block runs; a single process needs no others and gets none.

    Where the processes are connected already, by a program that has its own ways to start and end them, they stay so,
    and errors are raised as they come.

    Args:
        timeout: how long a collective, and the start itself, may take.

    Raises:
        SystemExit: with several processes, in place of whatever left the block on any rank, once it is told on
            standard error: 2 for a user's mistake, otherwise 1, on all ranks.
        KeyboardInterrupt: as it came; it ends the other ranks, too.
    """
    if launch.world_size == 1 or is_connected(launch):
        yield
        return
    store = init_process_group(launch, backend, timeout)
    assert store is not None
    end = _End(launch.rank)
    lifeline = Lifeline(store, launch, end.soon, timeout)
    try:
        yield
    except KeyboardInterrupt:
        lifeline.spread(Failure(launch.rank, f"rank {launch.rank} was interrupted", 1))
        raise
    except BaseException as error:  # noqa: BLE001 - whatever it is, the other ranks cannot go on without this one
        _end_at_the_latest_in(2 * GRACE)
        first = lifeline.failure(SETTLE) or _claim(store, lifeline, _describe(error, launch.rank))
        if first.rank == launch.rank:
            _tell(error, launch.rank)
            lifeline.spread(first)
        else:
            lifeline.failure(GRACE)  # once it knows, the other rank has told its error
            end.say(first)
        raise SystemExit(first.code) from None
    lifeline.leave()
    end.cancel()
    destroy()


def _end_at_the_latest_in(seconds: float) -> None:
    """Even where no Python runs any more: leaving the interpreter may wait for collectives that never end."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


class _End:
    """Ends this process because of another rank, and says so once."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._lock, self._said = threading.Lock(), False
        self._timer: threading.Timer | None = None

    def soon(self, failure: Failure) -> None:
        """End the process after ``GRACE`` seconds, whatever it does then."""
        self._timer = threading.Timer(GRACE, self._now, [failure])
        self._timer.daemon = True
        self._timer.start()

    def cancel(self) -> None:
        """Do not: this rank had done its part when the other one failed."""
        if self._timer is not None:
            self._timer.cancel()

    def say(self, failure: Failure) -> None:
        with self._lock:
            if not self._said:
                _print(f"evocore (rank {self._rank}): {failure.told}\n")
            self._said = True

    def _now(self, failure: Failure) -> None:
        self.say(failure)
        os._exit(failure.code)


def _describe(error: BaseException, rank: int) -> Failure:
    mistake = isinstance(error, UserError)
    line = (str(error).splitlines() or [""])[0]
    text = line if mistake else f"{type(error).__name__}: {line}"
    text = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    see = "message" if mistake else "traceback"
    return Failure(rank, f"rank {rank} failed first, see its {see}: {text}", 2 if mistake else 1)


def _claim(store: Store, lifeline: Lifeline, mine: Failure) -> Failure:
    """The failure that came first: this one, unless another rank says the same of its own."""
    try:
        return Failure.from_json(store.compare_set("evocore/failure", "", mine.to_json()))
    except RuntimeError:
        # The store has ended with the rank that kept it. If that rank failed, it said so before it went.
        return lifeline.failure(SETTLE) or mine


def _tell(error: BaseException, rank: int) -> None:
    told = ""
    if not isinstance(error, UserError) or traceback_wanted():
        told = "".join(traceback.format_exception(error))
    title = f"evocore (rank {rank})"
    _print(f"{told}{title}: {error}\n" if isinstance(error, UserError) else f"{title} failed:\n{told}")


def _print(text: str) -> None:
    """Write all at once, so that ranks that share a terminal do not write into one another's lines."""
    sys.stdout.flush()
    sys.stderr.write(text)
    sys.stderr.flush()
