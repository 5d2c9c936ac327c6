"""Who this process is among those of a run, read from what its launcher left in the environment.

Everything a launcher can get wrong is found here, before a process group exists: afterwards it would be a hang.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from evocore.errors import UserError
from evocore.parallel.nodelist import expand_nodes
from evocore.parallel.rendezvous import agree_on_attempt

if TYPE_CHECKING:
    from torch.distributed import Store

    from evocore.backend import Backend
    from evocore.ops.collectives import Collectives

LAUNCHERS = ("auto", "torch", "slurm", "none")
TORCH_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOWEST_PORT, PORTS = 15000, 15000
"""Ports for runs under Slurm: above the services, below what systems hand out by themselves."""
DIFFERENCES = 20
"""Lines shown of what two ranks do not agree on."""


@dataclass(frozen=True)
class LaunchEnvironment:
    """One process of a run.

    Attributes:
        rank: its number among all ``world_size`` processes.
        local_rank: its number among the ``local_world_size`` processes of its machine.
        master_addr, master_port: where rank 0, or the launcher, answers.
        attempt: how often this machine's launcher has started the run again.
        launcher: ``torch``, ``slurm`` or ``none``.
        launcher_hosts_store: whether the launcher itself answers at the master's address.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = 0
    attempt: int = 0
    launcher: str = "none"
    launcher_hosts_store: bool = False


def detect_launch(
    launcher: str = "auto",
    *,
    host: str | None = None,
    port: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> LaunchEnvironment:
    """Read the launcher's variables.

    Args:
        launcher: one of ``LAUNCHERS``; ``auto`` takes torchrun's variables, then Slurm's if a step of several tasks
            runs, then a single process.
        host: address of rank 0, instead of what the environment says.
        port: its port, likewise.
        environ: where to read.

    Raises:
        UserError: if variables are missing, are no numbers or contradict one another.
    """
    if launcher not in LAUNCHERS:
        raise UserError(
            f"--launcher {launcher}", f"one of {', '.join(LAUNCHERS)}", "name one of these, or leave it out"
        )
    if launcher == "auto":
        launcher = _guess(environ)
    if launcher == "none":
        return LaunchEnvironment()
    found = _from_torch(environ, host, port) if launcher == "torch" else _from_slurm(environ, host, port)
    _check(found)
    return found


def init_process_group(
    launch: LaunchEnvironment, backend: Backend, timeout: timedelta = timedelta(minutes=30)
) -> Store | None:
    """Connect the processes of a run; a single process needs no process group and gets none.

    Args:
        timeout: how long a collective, and the start itself, may take.

    Returns:
        The store of this attempt, in which nothing of an earlier one is found.
    """
    if launch.world_size == 1:
        return None
    import torch.distributed as dist

    store: Store = dist.TCPStore(
        launch.master_addr,
        launch.master_port,
        launch.world_size,
        is_master=launch.rank == 0 and not launch.launcher_hosts_store,
        timeout=timeout,
    )
    if launch.launcher_hosts_store:
        token = agree_on_attempt(store, launch.rank, launch.world_size, timeout)
        store = dist.PrefixStore(f"evocore/attempt_{token}", store)
    dist.init_process_group(
        backend.process_group_backend, store=store, rank=launch.rank, world_size=launch.world_size, timeout=timeout
    )
    return store


def is_connected(launch: LaunchEnvironment) -> bool:
    """Whether this process is connected already, as the rank that it is said to be.

    Raises:
        UserError: if it is connected as another.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return False
    found, said = (dist.get_rank(), dist.get_world_size()), (launch.rank, launch.world_size)
    if found != said:
        raise UserError(
            f"this process is rank {found[0]} of {found[1]} in torch.distributed, not rank {said[0]} of {said[1]}",
            "the same rank in both",
            "leave torch.distributed to evocore, or describe the launch as it is",
        )
    return True


def destroy() -> None:
    """Disconnect, if this process was connected."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def agree_on(name: str, text: str, collectives: Collectives) -> None:
    """Check that all ranks hold the same text: the resolved config, the table of kernels.

    Args:
        name: what the text is, for the message.

    Raises:
        UserError: on every rank if any two differ; it names the ranks and shows the lines that differ.
    """
    texts = collectives.agree(text)
    ranks: dict[str, list[int]] = {}
    for rank, other in enumerate(texts):
        ranks.setdefault(other, []).append(rank)
    if len(ranks) == 1:
        return
    first = texts[0]
    versions = []
    for other, holders in list(ranks.items())[1:]:
        lines = difflib.unified_diff(
            first.splitlines(), other.splitlines(), "rank 0", _name_ranks(holders), "", "", 0, ""
        )
        versions.append("\n".join(list(lines)[:DIFFERENCES]))
    raise UserError(
        f"the ranks do not agree on {name}: {'; '.join(_name_ranks(holders) for holders in ranks.values())} differ\n"
        + "\n".join(versions),
        f"the same {name} on all {len(texts)} ranks",
        "start all ranks from the same files, installed packages and environment variables",
    )


def _name_ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{f' and {len(ranks) - 8} more' if len(ranks) > 8 else ''}"


def _guess(environ: Mapping[str, str]) -> str:
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return "torch"
    if "SLURM_STEP_ID" in environ and _tasks(environ) > 1:  # inside srun, not merely inside a batch script
        return "slurm"
    return "none"


def _from_torch(environ: Mapping[str, str], host: str | None, port: int | None) -> LaunchEnvironment:
    given = dict(environ)
    if host is not None:
        given["MASTER_ADDR"] = host
    if port is not None:
        given["MASTER_PORT"] = str(port)
    missing = [name for name in TORCH_VARIABLES if not given.get(name)]
    if missing:
        raise UserError(
            f"the launcher is torch, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            f"{', '.join(TORCH_VARIABLES)}, as torchrun sets them",
            "start with `torchrun --nproc-per-node N -m evocore train ...` or `evocore train --nproc N ...`, or say "
            "--launcher none",
        )
    return LaunchEnvironment(
        rank=_number(given, "RANK"),
        local_rank=_number(given, "LOCAL_RANK"),
        world_size=_number(given, "WORLD_SIZE"),
        local_world_size=_number(given, "LOCAL_WORLD_SIZE"),
        master_addr=given["MASTER_ADDR"],
        master_port=_number(given, "MASTER_PORT"),
        attempt=_number(given, "TORCHELASTIC_RESTART_COUNT", default=0),
        launcher="torch",
        launcher_hosts_store=given.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_slurm(environ: Mapping[str, str], host: str | None, port: int | None) -> LaunchEnvironment:
    missing = [name for name in ("SLURM_PROCID", "SLURM_LOCALID") if not environ.get(name)]
    if not (environ.get("SLURM_NPROCS") or environ.get("SLURM_NTASKS")):
        missing.append("SLURM_NTASKS")
    if missing:
        raise UserError(
            f"the launcher is slurm, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            "SLURM_PROCID, SLURM_LOCALID and SLURM_NTASKS (or SLURM_NPROCS), as srun sets them for each task",
            "start with `srun python train.py --launcher slurm ...`",
        )
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or ""
    if host is None and not nodes:
        raise UserError(
            "the launcher is slurm, but SLURM_JOB_NODELIST is not set",
            "a list of machines, whose first one runs rank 0",
            "start with srun, or name the machine of rank 0 with --host",
        )
    if port is None:
        job = _number(environ, "SLURM_JOB_ID", default=0) + _number(environ, "SLURM_STEP_ID", default=0)
        port = LOWEST_PORT + job % PORTS
    node = _number(environ, "SLURM_NODEID", default=0)
    return LaunchEnvironment(
        rank=_number(environ, "SLURM_PROCID"),
        local_rank=_number(environ, "SLURM_LOCALID"),
        world_size=_tasks(environ),
        local_world_size=_tasks_of_node(environ.get("SLURM_STEP_TASKS_PER_NODE", ""), node) or _tasks(environ),
        master_addr=host or expand_nodes(nodes)[0],
        master_port=port,
        attempt=_number(environ, "SLURM_RESTART_COUNT", default=0),
        launcher="slurm",
    )


def _tasks(environ: Mapping[str, str]) -> int:
    return _number(environ, "SLURM_NPROCS" if environ.get("SLURM_NPROCS") else "SLURM_NTASKS", default=1)


def _tasks_of_node(text: str, node: int) -> int | None:
    """The number for one machine in Slurm's short form: ``2(x3),1`` is 2, 2, 2, 1."""
    counts: list[int] = []
    for word in filter(None, text.split(",")):
        count, _, times = word.partition("(x")
        counts += [int(count)] * int(times.removesuffix(")") or 1)
    return counts[node] if node < len(counts) else None


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "")
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise UserError(
            f"{name}={text!r} in the environment",
            "a whole number, 0 or more",
            f"correct {name}, or start with a launcher",
        )
    return int(text)


def _check(launch: LaunchEnvironment) -> None:
    problem = None
    if launch.world_size < 1:
        problem = f"world size {launch.world_size}"
    elif launch.rank >= launch.world_size:
        problem = f"rank {launch.rank} of {launch.world_size} processes"
    elif not 1 <= launch.local_world_size <= launch.world_size:
        problem = f"{launch.local_world_size} processes on this machine, of {launch.world_size} in all"
    elif launch.local_rank >= launch.local_world_size:
        problem = f"local rank {launch.local_rank} of {launch.local_world_size} processes on this machine"
    elif not 1 <= launch.master_port <= 65535:
        problem = f"port {launch.master_port} for rank 0"
    if problem:
        raise UserError(
            f"the environment of the launcher ({launch.launcher}) contradicts itself: {problem}",
            "0 <= rank < world size, 0 <= local rank < local world size <= world size, a port from 1 to 65535",
            "unset what an earlier launcher left in the environment, or give the right --host and --port",
        )
