"""Ranks that fail in the third of their steps as they are told to, and what they leave behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from evocore.backends.cpu.device import CPUBackend
from evocore.errors import UserError
from evocore.parallel.failure import process_group
from evocore.parallel.launch import LaunchEnvironment

PATIENCE = 60


@dataclass
class Ended:
    """Exit codes in rank order, what all told on standard error in order, and seconds from the third step on."""

    codes: list[int]
    told: list[str]
    seconds: float


def run_ranks(log: Path, *hows: str, machines: bool = False) -> Ended:
    """Run one rank per word; see ``fail`` for the words.

    Args:
        machines: tell each rank that it is alone on its machine.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["evocore.testing.distributed", "evocore.backends.cpu.device"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(log, port, rank, hows, machines)) for rank in range(len(hows))]
    deadline = time.monotonic() + PATIENCE
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    seconds = time.monotonic() - min(float(moment.read_text()) for moment in log.parent.glob("step-*"))
    for process in ranks:
        process.kill()
        process.join()
    return Ended([process.exitcode for process in ranks], log.read_text().splitlines(), seconds)


def _rank(log: Path, port: int, rank: int, hows: tuple[str, ...], machines: bool) -> None:
    sys.stderr = log.open("a")
    torch.set_num_threads(1)
    size = len(hows)
    here = (0, size, 1) if machines else (rank, size, size)
    with process_group(LaunchEnvironment(rank, *here, "localhost", port), CPUBackend()):
        for step in range(3):
            if step == 2:
                (log.parent / f"step-{rank}").write_text(str(time.monotonic()))
                fail(hows[rank])
            CPUBackend().collectives().all_reduce(torch.ones(1000))


def fail(how: str) -> None:
    """Fail as ``how`` says; any other word is no failure."""
    if how == "raise":
        raise ArithmeticError("told to fail\nin two lines")
    if how == "mistake":
        raise UserError("a mistake", "none", "do not make it")
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "exit":
        os._exit(3)
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hang":
        time.sleep(2 * PATIENCE)
