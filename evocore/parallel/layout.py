"""What one rank holds and does, by arithmetic alone: decided before any process is connected to another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from math import lcm

from torch import nn

from evocore.config.checks_parallel import size_problems
from evocore.config.schema import Config
from evocore.nn.tying import tie, tied_parameters
from evocore.parallel.context import own_ranges
from evocore.parallel.expert_sharding import scorers, shard_experts
from evocore.parallel.pipeline.deferral import deferred_weights
from evocore.parallel.pipeline.schedules import Schedule
from evocore.parallel.pipeline.split import split_layers
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
        schedule: of the pipeline; a model that is not cut is a pipeline of one stage.
        chunks: layers of each chunk of a model that is cut.
    """

    topology: Topology
    rank: int = 0
    fully_sharded: bool = False
    schedule: Schedule = Schedule("1F1B", 1)
    chunks: tuple[range, ...] = ()

    @classmethod
    def of(cls, config: Config, world_size: int, rank: int) -> Layout:
        """The layout that a checked config asks for."""
        fully_sharded = config.parallel.zero1.fsdp or config.parallel.fsdp.enable
        schedule, chunks = _pipeline(config)
        return cls(Topology(Sizes.of(config, world_size)), rank, fully_sharded, schedule, chunks)

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

    def own_tokens(self, total: int) -> list[tuple[int, int]]:
        """Start and stop of the runs of tokens that this rank computes with, of a micro-batch with so many."""
        if self.mode != "isp":
            return [(0, total)]
        return own_ranges(total, self.part("head"), self.part("context"))

    def chunk_starts(self) -> tuple[int, ...]:
        """With which of the blocks that this rank's stage has each of its chunks begins, counted from 0."""
        held = self.schedule.chunks_of(self.part("pipeline").index) if self.chunks else (0,)
        return tuple(accumulate((len(self.chunks[chunk]) for chunk in held[:-1]), initial=0))

    def pipeline_report(self) -> list[str]:
        """Which layers each stage has, on one line; nothing about a model that is not cut."""
        if not self.chunks:
            return []
        stages = [
            " and ".join(f"{self.chunks[chunk].start}-{self.chunks[chunk].stop - 1}" for chunk in held)
            for held in map(self.schedule.chunks_of, range(self.schedule.stages))
        ]
        return [f"pipeline {self.schedule.name}, {len(stages)} stages of layers {', '.join(stages)}"]

    def cut(self, model: nn.Module) -> nn.Module:
        """The part of a model that this rank's pipeline stage holds, whose layers the whole shares with it."""
        if not self.chunks:
            return model
        mine = self.schedule.chunks_of(self.part("pipeline").index)
        return model.stage([self.chunks[chunk] for chunk in mine])  # type: ignore[operator, no-any-return]

    def shard(self, model: nn.Module) -> dict[str, Sharing]:
        """Cut what a model on the meta device has down to this rank's part of it; see ``shard_model``."""
        context, tied = self.part("context").parts, tied_parameters(model)
        sharings = shard_model(model, self.mode, self.part("tensor"), self.part("weight"), context)
        parts = (self.part(name) for name in ("expert", "expert_tensor", "expert_weight"))
        sharings |= shard_experts(model, *parts)
        tie(model, tied)
        for further in tied:
            del sharings[further]
        again = {*tied.values(), *(model.used_again() if hasattr(model, "used_again") else ())}  # type: ignore[operator]
        for name in sorted(again):
            stages = self._holders(model, name)
            sharings[name] = replace(sharings[name], tied=stages, duplicates=stages * sharings[name].duplicates)
        zero, kept = self.part("zero"), {*scorers(model), *again}
        if self.fully_sharded and zero.parts > 1:
            divisible = {name: sharing for name, sharing in sharings.items() if name not in kept}
            sharings |= fully_shard_matrices(divisible, zero)
        if self.schedule.splits_backward:
            for name in deferred_weights(model):
                sharings[name] = replace(sharings[name], delivered=True)
        return sharings

    def _holders(self, model: nn.Module, name: str) -> int:
        """How many pipeline stages have a parameter that is outside of the blocks."""
        if not self.chunks:
            return 1
        ends = {self.schedule.stage_of(chunk) for chunk in (0, self.schedule.total_chunks - 1)}
        stages = ([self.chunks[chunk] for chunk in self.schedule.chunks_of(end)] for end in ends)
        return sum(name in dict(model.stage(held).named_parameters()) for held in stages)  # type: ignore[operator]


def _pipeline(config: Config) -> tuple[Schedule, tuple[range, ...]]:
    settings, chunks = config.parallel.pipeline, config.model.num_chunks
    if settings.size == 1:
        return Schedule("1F1B", 1), ()
    name = "interleaved" if settings.mode == "1F1B" and chunks > 1 else settings.mode
    schedule = Schedule(name, settings.size, chunks)
    return schedule, tuple(split_layers(config.model.num_layers, schedule.total_chunks, settings.layers))
