"""Whether a config can run on a given number of ranks: every violation at once, by arithmetic alone.

The launch constraints are InternEvo's where they follow from what is computed. Those that follow from how InternEvo
computes it are not taken over: that packed data and the model's attention switch go together, unpacked data for isp
on some devices and for 2-D sequence parallelism (kernels are resolved by what they support); selective recomputation
only with isp, and its offload only where weights are gathered before wo; overlap and sharding limits of mixture of
experts and of zero-bubble schedules; ``interleaved_overlap`` for interleaved schedules; isp overlap only for listed
model classes; ramp-up steps in multiples of ``micro_bsz`` that end exactly at the full size (the ramp counts packs
and stops at the full size).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from evocore.config.checks_experts import expert_problems
from evocore.config.checks_model import MODEL_RULES
from evocore.config.checks_parallel import PARALLEL_RULES, ranks, ranks_text
from evocore.config.checks_run import RUN_RULES
from evocore.config.problems import combined
from evocore.config.schema import Config
from evocore.config.unsupported import not_yet
from evocore.errors import UserError


def check(config: Config, *, world_size: int, families: Collection[str]) -> list[UserError]:
    """Everything that keeps ``config`` from running; empty if it runs.

    Args:
        config: as load_config returns it.
        world_size: number of ranks.
        families: names and aliases of the model families that plug-ins offer.
    """
    problems = list(_family(config, families))
    problems += not_yet(config)
    problems += ranks(config, world_size)
    for rule in (*MODEL_RULES, *PARALLEL_RULES, expert_problems, *RUN_RULES):
        problems += rule(config)
    return problems


def require_runnable(config: Config, *, world_size: int, families: Collection[str]) -> None:
    """Raises one UserError that lists everything ``check`` finds."""
    problems = check(config, world_size=world_size, families=families)
    if problems:
        raise combined(problems, f"{config.JOB_NAME} cannot run on {ranks_text(world_size)}")


def _family(config: Config, families: Collection[str]) -> Iterator[UserError]:
    if config.model_type not in families:
        yield UserError(
            f"model_type={config.model_type!r}: this model family is not supported yet",
            f"one of {', '.join(sorted(families)) or 'none, as no plug-in offers a family'}",
            "choose one of those, or install the plug-in that offers it",
        )
