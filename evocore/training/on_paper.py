"""One rank of a run of any size without its processes and without memory: to count before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from evocore.backend import Backend
from evocore.ops.collectives import Collectives
from evocore.parallel.groups import Groups
from evocore.parallel.memory import Holding, memory
from evocore.parallel.runtime import Runtime
from evocore.parallel.traffic import Exchange, Mixture, Routed, Step, traffic
from evocore.training.assembly import Plan, zero_options
from evocore.training.optimizer import Optimizer

if TYPE_CHECKING:
    from evocore.config import Config


class RankOnPaper:
    """What a planned rank would exchange and hold.

    Args:
        config: of the run.
        plan: of the rank, from this config; its model, which stays on the meta device, is used up.
    """

    def __init__(self, config: Config, plan: Plan) -> None:
        self._config, self._plan = config, plan
        self._options = zero_options(config)
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

    def traffic(self, types: int = 0, routed: Mapping[int, Routed] | None = None) -> list[Exchange]:
        """See ``evocore.parallel.traffic``; of a step with ``data.micro_num`` micro-batches.

        Args:
            types: dataset types of the training data, which only its folders tell.
            routed: see ``Mixture``: rows of a step that was watched, where they do not spread evenly.
        """
        step = Step(
            micro_batches=self._config.data.micro_num,
            tokens=self._config.data.packed_length,
            weight=self._config.parallel.weight,
            communicate=self._options.communicate or torch.float32,
            types=types,
            keeps_attention=self._config.selective_checkpoint,
            mixture=self._mixture(routed),
            further=self._config.model.extra_pred_tokens > 0,
        )
        return traffic(self._plan.model, self._plan.layout, self._plan.sharings, self.optimizer.buckets, step)

    def memory(self) -> list[Holding]:
        """See ``evocore.parallel.memory``."""
        parallel = self._config.parallel
        return memory(
            self._plan.model,
            self._plan.layout,
            self._plan.sharings,
            self.optimizer.buckets,
            weight=parallel.weight,
            expert_weight=parallel.expert_weight,
            communicate=self._options.communicate or torch.float32,
            keeps_buffers=self._plan.backend.reuses_gather_buffers(),
        )

    def _mixture(self, routed: Mapping[int, Routed] | None) -> Mixture | None:
        model, loss = self._config.model, self._config.loss
        if model.num_experts == 1:
            return None
        losses = loss.moe_loss_coeff != 0 or loss.moe_z_loss_coeff != 0
        return Mixture(model.num_layers + model.extra_pred_tokens, model.num_experts, losses, routed)


class _Unconnected(Backend):
    """Makes no process groups: nobody exchanges anything."""

    def new_group(self, ranks: list[int]) -> dist.ProcessGroup:
        return None  # type: ignore[return-value] # what a group holds of which nothing is asked
