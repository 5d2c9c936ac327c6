"""Launch constraints on the block ``parallel.pipeline``: what each schedule can honour."""

from __future__ import annotations

from collections.abc import Iterator

from evocore.config.schema import Config
from evocore.errors import UserError

Problems = Iterator[UserError]


def pipeline_problems(config: Config) -> Problems:
    """Every violation; of a model that is not cut, almost none."""
    model, pipeline = config.model, config.parallel.pipeline
    if pipeline.size > 1:
        yield from _stages(config)
    if pipeline.layers is not None:
        yield from _layers(config, pipeline.layers)
    if pipeline.mode == "ZBH1" and model.num_chunks > 1:
        yield UserError(
            f"model.num_chunks={model.num_chunks} with parallel.pipeline.mode='ZBH1'",
            "one chunk per stage",
            "set model.num_chunks=1, or the mode to 'ZBV' or '1F1B'",
        )
    if pipeline.size == 1 and config.data.gradient_accumulation != config.data.micro_num:
        yield UserError(
            f"data.gradient_accumulation={config.data.gradient_accumulation} differs from "
            f"data.micro_num={config.data.micro_num}",
            "the same number without pipeline parallelism",
            "remove data.gradient_accumulation",
        )


def _stages(config: Config) -> Problems:
    model, stages = config.model, config.parallel.pipeline.size
    if model.num_layers < stages * model.num_chunks:
        yield UserError(
            f"model.num_layers={model.num_layers} is less than parallel.pipeline.size={stages} times "
            f"model.num_chunks={model.num_chunks}",
            "at least one layer per chunk",
            "use fewer stages or chunks",
        )
    if config.data.micro_num < stages:
        yield UserError(
            f"data.micro_num={config.data.micro_num} is less than parallel.pipeline.size={stages}",
            "at least as many micro-batches as stages: with fewer, some stage is idle at any time",
            f"set data.micro_num={stages} or more, with a smaller data.micro_bsz if the batch is to stay",
        )


def _layers(config: Config, counts: list[int]) -> Problems:
    model, stages = config.model, config.parallel.pipeline.size
    chunks = stages * model.num_chunks if stages > 1 else 1
    if len(counts) != chunks or sum(counts) != model.num_layers or min(counts) < 1:
        yield UserError(
            f"parallel.pipeline.layers={counts} for model.num_layers={model.num_layers} in {chunks} "
            f"chunk{'s' if chunks != 1 else ''}",
            f"{chunks} number{'s' if chunks != 1 else ''} of 1 or more that add up to {model.num_layers}",
            "change parallel.pipeline.layers, or remove it to deal the layers out evenly",
        )
