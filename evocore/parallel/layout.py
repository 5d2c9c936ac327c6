"""What one rank holds and does, by arithmetic alone: decided before any process is connected to another."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm

from torch import nn

from evocore.config.checks_parallel import size_problems
from evocore.config.schema import Config
from evocore.parallel.sharding import Part, Sharing, fully_shard_matrices, shard_model
from evocore.parallel.sizes import Sizes
from evocore.parallel.topology import Topology


@dataclass(frozen=True)
class Layout:
    """One rank among those of a run.

    Attributes:
        topology: of the run.
        rank: of this process.
        fully_sharded: whether the ranks of a ZeRO group share the weights as well.
    """

    topology: Topology
    rank: int = 0
    fully_sharded: bool = False

    @classmethod
    def of(cls, config: Config, world_size: int, rank: int) -> Layout:
        """The layout that a checked config asks for."""
        fully_sharded = config.parallel.zero1.fsdp or config.parallel.fsdp.enable
        return cls(Topology(Sizes.of(config, world_size)), rank, fully_sharded)

    @classmethod
    def smallest(cls, config: Config) -> Layout:
        """Of the first rank of the fewest that the sizes of a config allow.

        Raises:
            UserError: if the sizes fit no number of ranks.
        """
        parallel = config.parallel
        zero, tensor, experts = max(1, parallel.zero1.size), parallel.tensor.size, max(1, parallel.expert.size)
        stage = lcm(tensor * zero, tensor * experts)
        if parallel.tensor.mode == "isp":
            stage = lcm(tensor, parallel.weight.size * zero, parallel.expert_weight.size * experts)
        world = stage * parallel.pipeline.size
        for problem in size_problems(config, world):
            raise problem
        return cls.of(config, world, 0)

    @property
    def mode(self) -> str:
        """How layers are shared; ``isp`` without anything to share is no mode of its own."""
        sizes = self.topology.sizes
        return "mtp" if sizes.tensor == sizes.weight == 1 else sizes.mode

    def part(self, name: str) -> Part:
        """The place of this rank in its group of a name."""
        return Part(self.topology.index(name, self.rank), self.topology.size(name))

    def shard(self, model: nn.Module) -> dict[str, Sharing]:
        """Cut a model on the meta device down to this rank's part; see ``shard_model``."""
        sharings = shard_model(model, self.mode, self.part("tensor"), self.part("weight"))
        zero = self.part("zero")
        return fully_shard_matrices(sharings, zero) if self.fully_sharded and zero.parts > 1 else sharings
