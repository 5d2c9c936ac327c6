"""Hands a data rank its batches, prepared ahead by a background thread, and knows exactly where it stands.

The state that is saved is that after the last batch handed out, whatever the thread has prepared beyond it.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

from evocore.data.batch import StepBatch
from evocore.data.packing import Packing
from evocore.data.sampler import Sampler


@dataclass
class _Prepared:
    batch: StepBatch
    state: dict[str, int]


@dataclass
class _Producer:
    """Prepares batches until it is stopped. Holds no reference to the loader, whose end stops it."""

    packing: Packing
    sampler: Sampler
    free: threading.Semaphore
    stopped: bool = False
    ready: queue.SimpleQueue[_Prepared | BaseException] = field(default_factory=queue.SimpleQueue)

    def prepare(self) -> _Prepared:
        draw = self.sampler.draw()
        micro_batches = [] if draw.skipped else self.packing.read(draw.packs.tolist())
        return _Prepared(StepBatch(micro_batches, draw.skipped, draw.batch_count), self.sampler.state_dict())

    def run(self) -> None:
        try:
            while True:
                self.free.acquire()
                if self.stopped:
                    return
                self.ready.put(self.prepare())
        except BaseException as error:  # noqa: BLE001 - whatever it is, the consumer raises it again
            self.ready.put(error)

    def stop(self) -> None:
        self.stopped = True
        self.free.release()


class TrainLoader:
    """Iterate it for one :class:`StepBatch` after another, without end; close it, or use it in ``with``, when done.

    Args:
        prefetch: step batches prepared ahead; 0 prepares each when it is asked for, without a thread.
    """

    def __init__(self, packing: Packing, sampler: Sampler, prefetch: int) -> None:
        self._state = sampler.state_dict()
        self._producer = _Producer(packing, sampler, threading.Semaphore(max(1, prefetch)))
        self._threaded = prefetch > 0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._finalizer = weakref.finalize(self, self._producer.stop)

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise StopIteration
        prepared = self._take() if self._threaded else self._producer.prepare()
        self._state = prepared.state
        return prepared.batch

    def _take(self) -> _Prepared:
        if self._thread is None:
            self._thread = threading.Thread(target=self._producer.run, name="evocore-data", daemon=True)
            self._thread.start()
        prepared = self._producer.ready.get()
        if isinstance(prepared, BaseException):
            self._failure = prepared
            raise prepared
        self._producer.free.release()
        return prepared

    def state_dict(self) -> dict[str, int]:
        """Where a resumed run has to go on: behind the last batch that was handed out. The same on every rank."""
        return dict(self._state)

    def close(self) -> None:
        """Stop the thread and wait for it; there are no more batches after that."""
        self._closed = True
        self._finalizer()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> TrainLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
