"""One rank of a run of any size without its processes and without memory: to count before anything starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.distributed as dist

from evocore.backend import Backend
from evocore.errors import UserError
from evocore.ops.collectives import Collectives
from evocore.parallel.groups import Groups
from evocore.parallel.memory import Holding, memory
from evocore.parallel.runtime import Runtime
from evocore.parallel.traffic import Exchange, traffic
from evocore.training.assembly import Plan
from evocore.training.optimizer import Optimizer
from evocore.training.run import _zero_options

if TYPE_CHECKING:
    from evocore.config import Config


class RankOnPaper:
    """What a planned rank would exchange and hold.

    Args:
        config: of the run.
        plan: of the rank, from this config; its model, which stays on the meta device, is used up.

    Raises:
        UserError: if the config asks for what is not counted yet: pipelines, experts, full sharding.
    """

    def __init__(self, config: Config, plan: Plan) -> None:
        _require_counted(config)
        self._config, self._plan = config, plan
        self._options = _zero_options(config)
        collectives = Collectives()
        groups = Groups(plan.layout.topology, plan.layout.rank, _Unconnected(), collectives)
        self.optimizer = Optimizer(
            plan.model,
            plan.adamw(),
            weight_decay=config.adam.weight_decay,
            no_decay=config.adam.no_decay,
            runtime=Runtime(plan.layout, groups, collectives, plan.sharings),
            options=self._options,
        )

    def traffic(self, types: int = 0) -> list[Exchange]:
        """See ``evocore.parallel.traffic``; of a step with ``data.micro_num`` micro-batches.

        Args:
            types: dataset types of the training data, which only its folders tell.
        """
        return traffic(
            self._plan.model,
            self._plan.layout,
            self.optimizer.buckets,
            micro_batches=self._config.data.micro_num,
            tokens=self._config.data.packed_length,
            weight=self._config.parallel.weight,
            communicate=self._options.communicate,
            types=types,
        )

    def memory(self) -> list[Holding]:
        """See ``evocore.parallel.memory``."""
        return memory(
            self._plan.model,
            self._plan.layout,
            self.optimizer.buckets,
            weight=self._config.parallel.weight,
            keeps_buffers=self._plan.backend.reuses_gather_buffers(),
        )


def _require_counted(config: Config) -> None:
    parallel = config.parallel
    for key, value, neutral, what in (
        ("parallel.pipeline.size", parallel.pipeline.size, 1, "pipeline parallelism"),
        ("model.num_experts", config.model.num_experts, 1, "a mixture of experts"),
        ("parallel.fsdp.enable", parallel.fsdp.enable, False, "fully sharded data parallelism"),
        ("parallel.zero1.fsdp", parallel.zero1.fsdp, False, "fully sharded data parallelism"),
    ):
        if value != neutral:
            raise UserError(
                f"{key}={value}: traffic and memory of {what} are not counted yet",
                f"{key}={neutral}",
                f"count without it (--set {key}={neutral}), or leave out --traffic and --memory",
            )


class _Unconnected(Backend):
    """Makes no process groups: nobody exchanges anything."""

    def new_group(self, ranks: list[int]) -> dist.ProcessGroup:
        return None  # type: ignore[return-value] # what a group holds of which nothing is asked
