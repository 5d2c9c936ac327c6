"""What the ranks of the distributed checkpoint tests do: a module that other processes can import."""

import errno
import os
import resource

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from evocore.checkpoint.checkpointer import Checkpointer

PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "everywhere": Replicate()}


def weights() -> dict[str, torch.Tensor]:
    """Shapes that do not divide by two, one that leaves a rank without rows, and an empty one."""
    generator = torch.Generator().manual_seed(3)
    return {
        "uneven": torch.randn(5, 3, generator=generator),
        "half": torch.randn(4, 6, generator=generator).bfloat16(),
        "one.row": torch.randn(1, 3, generator=generator),
        "none": torch.empty(0, 4),
    }


def rank_state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + dist.get_rank())
    return {f"rng.{dist.get_rank()}": generator.get_state()}


def _outcome(call):
    """``(type name, text)`` of what ``call`` raised, or ``("", result)``."""
    try:
        return "", call()
    except Exception as error:  # noqa: BLE001 - what it is, is what the test looks at
        return type(error).__name__, str(error)


def save_replicated(folder, step, scale=1.0):
    tensors = {name: tensor * scale for name, tensor in weights().items()}
    state = {"step": step, f"seen.{dist.get_rank()}": dist.get_rank() * 10}
    return str(Checkpointer(folder).save(step, tensors=tensors | rank_state(), state=state))


def load_replicated(folder, step):
    tensors = {name: torch.zeros_like(tensor) for name, tensor in (weights() | rank_state()).items()}
    state = Checkpointer(folder).load(f"{folder}/{step}", tensors=tensors)
    same = all(torch.equal(tensors[name], tensor) for name, tensor in (weights() | rank_state()).items())
    return same, state


def _sharded(tensors, placement) -> dict[str, DTensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: distribute_tensor(tensor, mesh, [placement]) for name, tensor in tensors.items()}


def save_sharded(folder, step, placement):
    Checkpointer(folder).save(step, tensors=_sharded(weights(), PLACEMENTS[placement]), state={"step": step})


def load_sharded(folder, step, placement):
    tensors = _sharded({name: torch.zeros_like(tensor) for name, tensor in weights().items()}, PLACEMENTS[placement])
    state = Checkpointer(folder).load(f"{folder}/{step}", tensors=tensors)
    whole = {name: tensor.full_tensor() for name, tensor in tensors.items()}
    return all(torch.equal(whole[name], tensor) for name, tensor in weights().items()), state


def save_2d(folder, step):
    """Rows split over one axis of a 2 x 2 mesh and copied over the other, as hybrid sharding does."""
    mesh = init_device_mesh("cpu", (2, 2))
    tensors = {name: distribute_tensor(tensor, mesh, [Replicate(), Shard(0)]) for name, tensor in weights().items()}
    Checkpointer(folder).save(step, tensors=tensors, state={})


def save_where_rank_1_hits_a_file_size_limit(folder, step):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        tensors = {f"of.rank.{dist.get_rank()}": torch.ones(100_000)}
        return _outcome(lambda: Checkpointer(folder).save(step, tensors=tensors, state={}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def save_where_rank_0_finds_the_disk_full(folder, step):
    fsync = os.fsync

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if dist.get_rank() == 0:
        os.fsync = full
    try:
        return _outcome(lambda: save_replicated(folder, step))
    finally:
        os.fsync = fsync


def save_what_rank_1_cannot(folder, state, value):
    first = dist.get_rank() == 0
    tensors = {"w": torch.ones(2), **({} if first or state else {"bad": value})}
    extra = {"bad": value} if state and not first else {}
    return _outcome(lambda: Checkpointer(folder).save(1, tensors=tensors, state=extra))


def load_with_the_wrong_names(folder, step):
    """Rank 1 leaves out its generator, and rank 0 asks for one that nobody saved."""
    tensors = {name: torch.zeros_like(tensor) for name, tensor in weights().items()}
    if dist.get_rank() == 0:
        tensors |= rank_state() | {"rng.7": torch.zeros(2)}
    return _outcome(lambda: Checkpointer(folder).load(f"{folder}/{step}", tensors=tensors))


def load_latest_replicated(folder):
    tensors = {name: torch.zeros_like(tensor) for name, tensor in (weights() | rank_state()).items()}
    checkpointer = Checkpointer(folder)
    newest, _ = checkpointer.latest()
    found = checkpointer.load_latest(tensors=tensors)
    problems = [(info.step, info.problem) for info in found.passed_over]
    return newest.step, found.info.step, found.state["step"], problems, tensors["uneven"]


def die_in_the_middle_of_a_save(folder, step):
    if dist.get_rank() == 0:
        os.fsync = lambda descriptor: os._exit(9)
    save_replicated(folder, step)
