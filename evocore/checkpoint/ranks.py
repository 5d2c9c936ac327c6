"""The ranks that save and load together, and one error for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

T = TypeVar("T")


class Ranks:
    """The processes of ``group``, or of the default group, or this process alone where there is none."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self.group = group
        self.alone = not (dist.is_available() and dist.is_initialized())
        self.rank = 0 if self.alone else dist.get_rank(group)

    @property
    def is_coordinator(self) -> bool:
        return self.rank == 0

    def from_coordinator(self, call: Callable[[], T]) -> T:
        """Collective. Call on the coordinator; its result, or the error it raised, is every rank's."""
        answer: list[Any] = [None, None]
        if self.is_coordinator:
            try:
                answer[0] = call()
            except Exception as error:  # noqa: BLE001 - whatever it is, the other ranks wait to hear of it
                answer[1] = error
        if not self.alone:
            source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
            dist.broadcast_object_list(answer, src=source, group=self.group)
        if answer[1] is not None:
            raise answer[1]
        result: T = answer[0]
        return result

    @contextmanager
    def one_error(self) -> Iterator[None]:
        """Raise the error of the lowest rank that failed in place of DCP's collection, the same one on every rank.

        The collection, with each rank's traceback, is its cause.
        """
        try:
            yield
        except CheckpointException as failure:
            rank = min(failure.failures)
            error, _ = failure.failures[rank]
            if not self.alone:
                error.add_note(f"on rank {rank}")
            raise error from failure
