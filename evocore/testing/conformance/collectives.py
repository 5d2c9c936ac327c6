"""Runs the checks of a device's collectives in real processes, one for each rank.

Every check runs in a process group of its own, of the library that the backend names, on 2 and on 4 ranks. Each rank
has the device of its local rank; a backend whose ``device()`` is the same for every rank lets them share it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from evocore.backend import Backend
from evocore.testing.conformance.calls import ContractError
from evocore.testing.conformance.collective_checks import COLLECTIVE_CHECKS, check_alone
from evocore.testing.conformance.facilities import Finding, NotHereError, find
from evocore.testing.conformance.ranks import Ranks
from evocore.testing.distributed import RankError, RankPools

WORLDS = (2, 4)
TIMEOUT = 120.0
"""Seconds for a check, the start of the library in each process included."""
PATIENCE = 1 / 6
"""Of that time: how long ranks wait for one that should have returned at once."""
PRELOADED = ("evocore.testing.conformance.collectives",)

COLLECTIVES: tuple[tuple[str, int], ...] = (
    ("alone", 1),
    *((name, ranks) for ranks in WORLDS for name in COLLECTIVE_CHECKS),
)
"""Every check with the number of ranks that it runs on."""


class CollectivesChecker:
    """Checks the collectives of one backend; keeps the processes until it is closed.

    Args:
        backend: its class must be importable, as the ranks are other processes.
        timeout: seconds until all ranks must be done with a check.
    """

    def __init__(self, backend: Backend, timeout: float = TIMEOUT) -> None:
        self._backend, self._timeout = backend, timeout
        self._pools = RankPools(preload=PRELOADED)

    def check(self, name: str, ranks: int) -> Finding:
        """Run one of ``COLLECTIVES``."""

        def run() -> None:
            if name == "alone":
                check_alone(self._backend.collectives(), self._backend.device())
            else:
                self._run(name, ranks)

        return find(run, backend=self._backend.name, part="collectives", check=name, ranks=ranks)

    def close(self) -> None:
        """End the processes."""
        self._pools.close()

    def _run(self, name: str, ranks: int) -> None:
        reason = why_too_few(self._backend, ranks)
        if reason is not None:
            raise NotHereError(reason)
        with tempfile.TemporaryDirectory(prefix="evocore-conform-") as folder:
            try:
                self._pools.run(
                    ranks,
                    _check_on_rank,
                    type(self._backend),
                    name,
                    str(Path(folder) / "store"),
                    self._timeout,
                    timeout=self._timeout,
                )
            except RankError as error:
                raise ContractError(f"on rank {error.rank} of {ranks}: {_last_line(error)}") from error


def why_too_few(backend: Backend, ranks: int) -> str | None:
    """Why so many processes cannot have a device each here; None if they can, or may share one."""
    count = backend.device_count()
    if count >= ranks or len({backend.device(rank) for rank in range(ranks)}) == 1:
        return None
    return f"{ranks} ranks need {ranks} devices, found {count}"


def _last_line(error: RankError) -> str:
    if isinstance(error.error, ContractError):
        return str(error.error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().removeprefix(f"rank {error.rank}: ")


def _check_on_rank(offer: type[Backend], name: str, store_path: str, timeout: float) -> None:
    """One rank's share of a check. The pool's process group is of the host; the backend's takes its place."""
    rank, world = dist.get_rank(), dist.get_world_size()
    backend = offer()
    reason = backend.why_unavailable()  # which imports what the device needs
    if reason is not None:
        raise ContractError(f"why_unavailable() is {reason!r} in another process: let it be available there, too")
    device = backend.device(rank)
    backend.set_device(device)
    dist.barrier()  # nobody closes its connections while another still makes them
    dist.destroy_process_group()
    store = dist.FileStore(store_path, world)
    dist.init_process_group(
        backend.process_group_backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
    )
    check: Callable[[Ranks], None] = COLLECTIVE_CHECKS[name]
    collectives, patience = backend.collectives(), timedelta(seconds=timeout * PATIENCE)
    if torch.float32 not in collectives.dtypes():
        raise ContractError(
            "dtypes() of the collectives lacks float32: losses and norms of gradients are added up in it"
        )
    check(Ranks(backend, collectives, device, rank, world, store, patience))
