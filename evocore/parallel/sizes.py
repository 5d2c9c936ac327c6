"""How many ranks share what, resolved from a config to plain numbers: the input of ``evocore.parallel.topology``."""

from __future__ import annotations

from dataclasses import dataclass

from evocore.config.checks_parallel import expert_size, expert_tensor_size, interleaves
from evocore.config.schema import Config

MODES = ("mtp", "msp", "fsp", "isp")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Ranks per group. Every size is 1 or more, and what is left out is not parallel.

    Attributes:
        world: all ranks.
        pipeline: stages.
        tensor: ranks that share one layer (mtp, msp, fsp) or one sequence (isp).
        mode: what the ranks of a tensor group share, see ``MODES``.
        weight: ranks that share the weights in isp; 1 in the other modes, which split them over the tensor group.
        zero: ranks that share one copy of the optimizer state, of those that hold the same weights.
        expert: ranks that share the experts.
        expert_tensor: ranks that share one expert as tensor parallelism does; 1 in isp.
        expert_weight: ranks that share the experts' weights in isp; 1 in the other modes.
        expert_zero: as ``zero``, of those that hold the same experts' weights.
        context: ranks of a tensor group that share the context in attention, in isp.
        window: ranks of one inner ring, of those that share the context.
        head_first: whether ranks that share the heads are neighbours, or those that share the context.
        interleaved: whether every other rank is in the same inner ring, or neighbours are.
        kv_parts: ranks that have the same key-value head because there are fewer of these than ranks.

    Raises:
        ValueError: if the sizes do not divide one another; ``evocore.config.checks_parallel.size_problems`` tells a
            user before.
    """

    world: int
    pipeline: int = 1
    tensor: int = 1
    mode: str = "mtp"
    weight: int = 1
    zero: int = 1
    expert: int = 1
    expert_tensor: int = 1
    expert_weight: int = 1
    expert_zero: int = 1
    context: int = 1
    window: int = 1
    head_first: bool = True
    interleaved: bool = False
    kv_parts: int = 1

    @classmethod
    def of(cls, config: Config, world_size: int) -> Sizes:
        """The sizes of a config in which ``size_problems`` finds nothing on this number of ranks."""
        parallel = config.parallel
        tensor, pipeline, mode = parallel.tensor.size, parallel.pipeline.size, parallel.tensor.mode
        stage = world_size // pipeline
        two = parallel.sequence_2D
        head, context = (two.head_size, two.context_size) if two.enable else (tensor, 1)
        weight = parallel.weight.size if mode == "isp" else 1
        weight_data = stage // (weight if mode == "isp" else tensor)
        expert, expert_tensor = expert_size(config, stage), expert_tensor_size(config)
        dense = config.model.num_experts == 1
        expert_weight = parallel.expert_weight.size if mode == "isp" and not dense else 1
        expert_data = stage // (expert * expert_tensor * expert_weight)
        expert_zero = -1 if dense else parallel.expert_zero1.size
        return cls(
            world=world_size,
            pipeline=pipeline,
            tensor=tensor,
            mode=mode,
            weight=weight,
            zero=parallel.zero1.size if parallel.zero1.size > 0 else weight_data,
            expert=expert,
            expert_tensor=expert_tensor,
            expert_weight=expert_weight,
            expert_zero=expert_zero if expert_zero > 0 else expert_data,
            context=context,
            window=two.window_size if two.enable else 1,
            head_first=two.device_placement_strategy.head_first or not two.enable,
            interleaved=interleaves(config),
            kv_parts=max(1, head // config.model.num_kv_attention_heads),
        )

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode {self.mode!r}: it can be {', '.join(MODES)}")
        if self.mode != "isp" and (self.weight, self.expert_weight) != (1, 1):
            raise ValueError(f"weight parallelism in mode {self.mode!r}: only isp has it")
        self._check("pipeline", self.pipeline, "ranks", self.world)
        self._check("tensor", self.tensor, "ranks of a stage", self.stage)
        self._check("weight", self.weight, "ranks of a stage", self.stage)
        self._check("zero", self.zero, "ranks with the same weights", self.weight_data)
        shared = self.expert * self.expert_tensor * self.expert_weight
        self._check("expert x expert_tensor x expert_weight", shared, "ranks of a stage", self.stage)
        self._check("expert_zero", self.expert_zero, "ranks with the same experts", self.expert_data)
        self._check("context", self.context, "ranks of a tensor group", self.tensor)
        self._check("kv_parts", self.kv_parts, "ranks that share the heads", self.head)
        parity = 2 if self.interleaved else 1
        self._check("window", self.window * parity, "ranks that share the context", self.context)

    @staticmethod
    def _check(name: str, size: int, of: str, whole: int) -> None:
        if size < 1 or whole % size:
            raise ValueError(f"{name} = {size} does not divide {whole} {of}")

    @property
    def stage(self) -> int:
        """Ranks of one pipeline stage."""
        return self.world // self.pipeline

    @property
    def data(self) -> int:
        """Ranks or tensor groups that work on different samples."""
        return self.stage // self.tensor

    @property
    def split(self) -> int:
        """Ranks over which tensor parallelism splits the weights; in isp it does not."""
        return 1 if self.mode == "isp" else self.tensor

    @property
    def weight_data(self) -> int:
        """Ranks of a stage that hold the same weights: data, but stage / weight in isp."""
        return self.stage // (self.split * self.weight)

    @property
    def zero_replica(self) -> int:
        """Copies of the optimizer state."""
        return self.weight_data // self.zero

    @property
    def expert_data(self) -> int:
        """Ranks of a stage that hold the same experts' weights."""
        return self.stage // (self.expert * self.expert_tensor * self.expert_weight)

    @property
    def expert_zero_replica(self) -> int:
        """Copies of the experts' optimizer state."""
        return self.expert_data // self.expert_zero

    @property
    def head(self) -> int:
        """Ranks that share the heads in attention: all of a tensor group that do not share the context."""
        return self.tensor // self.context

    @property
    def windows(self) -> int:
        """Inner rings of those that share the context."""
        return self.context // self.window
