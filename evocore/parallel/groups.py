"""The groups of ranks that this process belongs to, and what it exchanges with them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from evocore.backend import Backend
from evocore.ops.collectives import FINISHED, Collectives, Handle
from evocore.parallel.topology import Topology


class Group:
    """One group of ranks with this process among them.

    The calls are those of ``evocore.ops.collectives.Collectives``, with ranks counted within the group. A group of
    one rank has no process group: its calls are the identity, done at once, and need no ``torch.distributed``.

    Attributes:
        name: as in ``Topology.names``.
        ranks: global ranks of the members, ascending.
        rank: the place of this process among them.
        size: their number.
        process_group: None for all ranks, and for a group of one.
    """

    def __init__(
        self,
        name: str,
        ranks: tuple[int, ...],
        rank: int,
        process_group: dist.ProcessGroup | None,
        collectives: Collectives,
    ) -> None:
        self.name, self.ranks, self.rank, self.size = name, ranks, rank, len(ranks)
        self.process_group = process_group
        self._collectives = collectives

    def __repr__(self) -> str:
        return f"Group({self.name!r}, rank {self.rank} of {self.ranks})"

    def all_reduce(self, tensor: Tensor, *, op: str = "sum", asynchronous: bool = False) -> Handle:
        """Reduce in place; ``op`` is sum, avg, max or min."""
        if self.size == 1:
            return FINISHED
        return self._collectives.all_reduce(tensor, self.process_group, op=op, asynchronous=asynchronous)

    def all_gather(self, output: Tensor, shard: Tensor, *, asynchronous: bool = False) -> Handle:
        """Concatenate the equal shards of all ranks along dimension 0 into ``output``."""
        if self.size == 1:
            return _copy("all_gather", output, shard)
        return self._collectives.all_gather(output, shard, self.process_group, asynchronous=asynchronous)

    def reduce_scatter(self, shard: Tensor, tensor: Tensor, *, op: str = "sum", asynchronous: bool = False) -> Handle:
        """Reduce ``tensor`` and keep this rank's part of dimension 0 in ``shard``; ``op`` is sum or avg."""
        if self.size == 1:
            return _copy("reduce_scatter", shard, tensor)
        return self._collectives.reduce_scatter(shard, tensor, self.process_group, op=op, asynchronous=asynchronous)

    def all_to_all(
        self,
        output: Tensor,
        tensor: Tensor,
        *,
        output_splits: list[int] | None = None,
        input_splits: list[int] | None = None,
        asynchronous: bool = False,
    ) -> Handle:
        """Send part r of dimension 0 to rank r of the group and receive one part from each; None splits evenly."""
        if self.size == 1:
            return _copy("all_to_all", output, tensor)
        return self._collectives.all_to_all(
            output,
            tensor,
            self.process_group,
            output_splits=output_splits,
            input_splits=input_splits,
            asynchronous=asynchronous,
        )

    def broadcast(self, tensor: Tensor, source: int = 0, *, asynchronous: bool = False) -> Handle:
        """Overwrite ``tensor`` by that of rank ``source`` of the group."""
        origin = self.ranks[source]
        if self.size == 1:
            return FINISHED
        return self._collectives.broadcast(tensor, origin, self.process_group, asynchronous=asynchronous)

    def send(self, tensor: Tensor, destination: int) -> Handle:
        """Send to rank ``destination`` of the group; the tensor stays untouched until the handle is waited for."""
        return self._collectives.send(tensor, self._peer(destination), self.process_group)

    def recv(self, tensor: Tensor, source: int) -> Handle:
        """Receive from rank ``source`` of the group into ``tensor``."""
        return self._collectives.recv(tensor, self._peer(source), self.process_group)

    def barrier(self) -> None:
        """Wait until every rank of the group is here."""
        if self.size > 1:
            self._collectives.barrier(self.process_group)

    def _peer(self, place: int) -> int:
        if place == self.rank:
            raise ValueError(f"{self}: rank {place} exchanges a message with itself")
        return self.ranks[place]


class Groups:
    """The groups of this process, by name.

    Process groups are made when a name is first asked for: every process of the run asks for the same names in the
    same order. Names whose groups are the same ranks share one: communicators take memory.

    Args:
        topology: of the whole run.
        rank: of this process among all.
        backend: makes process groups.
        collectives: what the groups call; the backend's if left out.

    Raises:
        ValueError: if ``torch.distributed`` runs with another number of ranks or another rank.
    """

    def __init__(
        self, topology: Topology, rank: int, backend: Backend, collectives: Collectives | None = None
    ) -> None:
        self.topology, self.rank = topology, rank
        self._backend = backend
        self._collectives = backend.collectives() if collectives is None else collectives
        self._groups: dict[str, Group] = {}
        self._made: dict[tuple[str, tuple[int, ...]], dist.ProcessGroup] = {}
        world = topology.sizes.world
        if dist.is_initialized() and (dist.get_rank(), dist.get_world_size()) != (rank, world):
            raise ValueError(
                f"rank {rank} of {world} in the topology is rank {dist.get_rank()} of {dist.get_world_size()} in "
                "torch.distributed"
            )

    def get(self, name: str) -> Group:
        """The group of this name that this process is in.

        Raises:
            KeyError: if the topology has no such name.
        """
        if name not in self._groups:
            self._groups[name] = self._make(name)
        return self._groups[name]

    def _make(self, name: str) -> Group:
        channel, mine = self.topology.channel(name), self.topology.group_of(name, self.rank)
        for ranks in self.topology.groups(name):
            if self._needs_process_group(ranks, channel) and (channel, ranks) not in self._made:
                # Also where this process is no member: torch.distributed wants all processes to make all groups.
                self._made[channel, ranks] = self._backend.new_group(list(ranks))
        return Group(name, mine, mine.index(self.rank), self._made.get((channel, mine)), self._collectives)

    def _needs_process_group(self, ranks: tuple[int, ...], channel: str) -> bool:
        """Not alone; and not all ranks, whose group exists, unless they need a second one."""
        whole = len(ranks) == self.topology.sizes.world and dist.is_initialized() and not channel
        return len(ranks) > 1 and not whole


def _copy(name: str, output: Tensor, tensor: Tensor) -> Handle:
    """What a group of one does: nothing if it is the same memory already."""
    if output.dtype != tensor.dtype or output.numel() != tensor.numel():
        raise ValueError(
            f"{name} on one rank needs two tensors of one size and dtype: they are {output.dtype} "
            f"{list(output.shape)} and {tensor.dtype} {list(tensor.shape)}"
        )
    if not output.is_contiguous():
        raise ValueError(f"{name} writes into a tensor with gaps: strides {list(output.stride())}")
    if not (tensor.is_contiguous() and output.data_ptr() == tensor.data_ptr()):
        with torch.no_grad():
            output.view(-1).copy_(tensor.reshape(-1))
    return FINISHED
