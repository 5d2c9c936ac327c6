"""Who a process is, as torchrun, Slurm or nobody says; and what contradicts itself."""

import os
import socket

import pytest
import torch
import torch.distributed as dist

from evocore.backends.cpu.device import CPUBackend
from evocore.errors import UserError
from evocore.ops.collectives import Collectives
from evocore.parallel.launch import LaunchEnvironment, agree_on, destroy, detect_launch, init_process_group

TORCH = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SLURM = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}


def test_torchrun():
    expected = LaunchEnvironment(5, 1, 8, 4, "node1", 29400, 2, "torch", launcher_hosts_store=True)
    assert detect_launch("torch", environ=TORCH) == expected
    assert detect_launch(environ=TORCH) == expected


def test_slurm():
    found = detect_launch("slurm", environ=SLURM)
    assert found == LaunchEnvironment(5, 1, 8, 4, "gpu07", 15000 + 1234567 % 15000, 0, "slurm")
    assert detect_launch(environ=SLURM) == found


def test_ports_of_two_slurm_steps_differ_and_are_none_that_systems_hand_out():
    other = {**SLURM, "SLURM_STEP_ID": "1"}
    ports = {detect_launch(environ=environ).master_port for environ in (SLURM, other)}
    assert len(ports) == 2 and all(1024 < port < 32768 for port in ports)


def test_uneven_tasks_per_node():
    environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2"}
    assert detect_launch(environ=environ).local_world_size == 2


def test_the_older_name_of_the_number_of_tasks():
    environ = {**SLURM, "SLURM_NPROCS": "8"}
    del environ["SLURM_NTASKS"]
    assert detect_launch("slurm", environ=environ).world_size == 8


@pytest.mark.parametrize("environ", [TORCH, SLURM], ids=["torch", "slurm"])
def test_host_and_port_given_by_hand_win(environ):
    found = detect_launch(environ=environ, host="10.0.0.1", port=8888)
    assert (found.master_addr, found.master_port) == ("10.0.0.1", 8888)


@pytest.mark.parametrize(
    "environ", [{}, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"}], ids=["plain", "in a batch script"]
)
def test_nobody_launched_this(environ):
    assert detect_launch(environ=environ) == LaunchEnvironment()


def test_none_ignores_what_is_set():
    assert detect_launch("none", environ=TORCH) == LaunchEnvironment()


@pytest.mark.parametrize(
    "launcher, changes, words",
    [
        ("mpi", {}, "--launcher mpi"),
        ("torch", {"LOCAL_RANK": None, "MASTER_PORT": None}, "LOCAL_RANK, MASTER_PORT are not set"),
        ("torch", {"RANK": "five"}, "RANK='five'"),
        ("torch", {"RANK": "-1"}, "RANK='-1'"),
        ("torch", {"RANK": "8"}, "rank 8 of 8 processes"),
        ("torch", {"LOCAL_RANK": "4"}, "local rank 4 of 4 processes"),
        ("torch", {"LOCAL_WORLD_SIZE": "9"}, "9 processes on this machine, of 8"),
        ("torch", {"WORLD_SIZE": "0", "RANK": "0"}, "world size 0"),
        ("torch", {"MASTER_PORT": "70000"}, "port 70000"),
        ("slurm", {"SLURM_PROCID": None}, "SLURM_PROCID is not set"),
        ("slurm", {"SLURM_NTASKS": None}, "SLURM_NTASKS is not set"),
        ("slurm", {"SLURM_JOB_NODELIST": None}, "SLURM_JOB_NODELIST is not set"),
        ("slurm", {"SLURM_PROCID": "9"}, "rank 9 of 8 processes"),
    ],
)
def test_what_is_missing_or_contradicts_itself_is_told(launcher, changes, words):
    environ = {name: value for name, value in {**TORCH, **SLURM, **changes}.items() if value is not None}
    with pytest.raises(UserError, match=words) as error:
        detect_launch(launcher, environ=environ)
    assert error.value.expected and error.value.fix


def test_a_single_process_gets_no_process_group():
    init_process_group(LaunchEnvironment(), CPUBackend())
    assert not dist.is_initialized()
    destroy()


def connect(port, launcher_hosts_store):
    """Leave the harness's group, and build one as a run does."""
    rank, world = dist.get_rank(), dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    launch = LaunchEnvironment(rank, rank, world, world, "127.0.0.1", port, 0, "torch", launcher_hosts_store)
    sums = []
    for _ in range(2):  # the second as after a restart: the launcher's store still holds what the first left
        init_process_group(launch, CPUBackend())
        total = torch.tensor([float(rank)])
        Collectives().all_reduce(total)
        sums.append(total.item())
        dist.barrier()
        destroy()
        if not launcher_hosts_store:
            break
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # what the harness takes down
    return sums


def test_ranks_connect_through_rank_0(ranks):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert ranks(4, connect, port, False) == [[6.0]] * 4


def test_ranks_connect_through_the_store_of_their_launcher_again_and_again(ranks):
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for rank in range(4):  # an attempt that died before rank 0 answered
        store.set(f"evocore/hello/{rank}", "stale")
    assert ranks(4, connect, store.port, True) == [[6.0, 6.0]] * 4


def disagree(odd_rank):
    text = "rms_norm -> native\nadamw -> " + ("reference" if dist.get_rank() == odd_rank else "native")
    agree_on("the kernels", text, Collectives())
    return os.getpid()


def refusal(odd_rank):
    with pytest.raises(UserError) as error:
        disagree(odd_rank)
    return str(error.value)


def test_agreement(ranks):
    assert len(set(ranks(2, disagree, None))) == 2
    agree_on("the kernels", "anything", Collectives())


def test_disagreement_is_told_on_every_rank_with_the_difference(ranks):
    first, *others = ranks(4, refusal, 2)
    assert others == [first] * 3
    assert "do not agree on the kernels: ranks 0, 1, 3; rank 2 differ" in first
    assert "-adamw -> native" in first and "+adamw -> reference" in first and "rms_norm" not in first
