"""Launch constraints on the block ``parallel`` and on what it splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from evocore.config.schema import Config
from evocore.errors import UserError

Problems = Iterator[UserError]


def ranks(config: Config, world_size: int) -> Problems:
    parallel = config.parallel
    tensor, pipeline, weight = parallel.tensor.size, parallel.pipeline.size, parallel.weight.size
    isp = parallel.tensor.mode == "isp"
    if world_size % (tensor * pipeline):
        yield UserError(
            f"parallel.tensor.size={tensor} times parallel.pipeline.size={pipeline} does not divide "
            f"{ranks_text(world_size)}",
            f"a number of ranks that is a multiple of {tensor * pipeline}",
            "change a size or the number of ranks",
        )
    elif isp and world_size % (weight * pipeline):
        yield UserError(
            f"parallel.weight.size={weight} times parallel.pipeline.size={pipeline} does not divide "
            f"{ranks_text(world_size)}",
            f"a number of ranks that is a multiple of {weight * pipeline}",
            "change a size or the number of ranks",
        )
    else:
        yield from _zero(config, world_size // (pipeline * (weight if isp else tensor)))


def _zero(config: Config, replicas: int) -> Problems:
    size = config.parallel.zero1.size
    if size > 1 and replicas % size:
        yield UserError(
            f"parallel.zero1.size={size} does not divide the {replicas} data-parallel ranks",
            f"a divisor of {replicas}, or -1 for all",
            "set parallel.zero1.size=1",
        )
    elif replicas > 1 and size != 1:
        yield UserError(
            f"parallel.zero1.size={size}: ZeRO sharding is not supported yet: set parallel.zero1.size=1",
            "parallel.zero1.size=1 on more than one rank",
            "--set parallel.zero1.size=1",
        )


def _weight_parallel(config: Config) -> Problems:
    for key in ("weight", "expert_weight"):
        size = getattr(config.parallel, key).size
        if size > 1 and config.parallel.tensor.mode != "isp":
            yield UserError(
                f"parallel.{key}.size={size} with parallel.tensor.mode={config.parallel.tensor.mode!r}",
                "weight parallelism only in mode 'isp'",
                f"set parallel.tensor.mode='isp' or parallel.{key}.size=1",
            )


def _divisible(config: Config) -> Problems:
    """What tensor and weight parallelism split evenly."""
    model, parallel = config.model, config.parallel
    tensor, megatron = parallel.tensor.size, parallel.tensor.mode != "isp"
    splits = [
        ("model.vocab_size", model.vocab_size, "parallel.tensor.size", tensor, True),
        ("model.vocab_size", model.vocab_size, "parallel.weight.size", parallel.weight.size, True),
        ("model.num_attention_heads", model.num_attention_heads, "parallel.tensor.size", tensor, True),
        ("model.num_kv_attention_heads", model.num_kv_attention_heads, "parallel.tensor.size", tensor, megatron),
        ("model.hidden_size", model.hidden_size, "parallel.tensor.size", tensor, megatron),
        (
            "data.packed_length",
            config.data.packed_length,
            "parallel.tensor.size",
            tensor,
            parallel.tensor.mode != "mtp",
        ),
    ]
    for key, value, by, size, applies in splits:
        if applies and value % size:
            yield UserError(
                f"{key}={value} is not divisible by {by}={size}", f"a multiple of {size}", f"change {key} or {by}"
            )


def _pipeline(config: Config) -> Problems:
    model, pipeline = config.model, config.parallel.pipeline
    chunks = pipeline.size * model.num_chunks
    if pipeline.size > 1 and model.num_layers < chunks:
        yield UserError(
            f"model.num_layers={model.num_layers} is less than parallel.pipeline.size={pipeline.size} times "
            f"model.num_chunks={model.num_chunks}",
            "at least one layer per chunk",
            "use fewer stages or chunks",
        )
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


def _sharded(config: Config) -> Problems:
    if config.parallel.zero1.fsdp or config.parallel.fsdp.enable:
        for key, value, wanted in (
            ("parallel.pipeline.size", config.parallel.pipeline.size, config.parallel.pipeline.size == 1),
            ("parallel.tensor.mode", config.parallel.tensor.mode, config.parallel.tensor.mode != "isp"),
        ):
            if not wanted:
                yield UserError(
                    f"{key}={value!r} with fully sharded data parallelism",
                    "neither pipeline parallelism nor isp",
                    "turn one of them off",
                )


def _sequence_2d(config: Config) -> Problems:
    two = config.parallel.sequence_2D
    placement, tensor = two.device_placement_strategy, config.parallel.tensor.size
    if not two.enable:
        return
    if two.head_size * two.context_size != tensor:
        yield UserError(
            f"parallel.sequence_2D: head_size={two.head_size} times context_size={two.context_size} is not "
            f"parallel.tensor.size={tensor}",
            "a product equal to the tensor size",
            "change one of the three",
        )
    if two.context_size % two.window_size:
        yield UserError(
            f"parallel.sequence_2D: window_size={two.window_size} does not divide context_size={two.context_size}",
            "a divisor",
            "change parallel.sequence_2D.window_size",
        )
    if placement.head_first and two.head_size > 1 and placement.interleaved:
        yield UserError(
            "parallel.sequence_2D.device_placement_strategy: interleaved=True with head_first=True",
            "interleaving only where context ranks are neighbours",
            "set interleaved=False or head_first=False",
        )


def _experts(config: Config) -> Problems:
    model, parallel = config.model, config.parallel
    if model.num_experts == 1:
        for key, size in (("expert", parallel.expert.size), ("expert_weight", parallel.expert_weight.size)):
            if size > 1:
                yield UserError(
                    f"parallel.{key}.size={size} for a dense model (model.num_experts=1)", "at most 1", "set it to 1"
                )
        return
    if model.top_k > model.num_experts:
        yield UserError(
            f"model.top_k={model.top_k} is more than model.num_experts={model.num_experts}",
            f"at most {model.num_experts}",
            "lower model.top_k",
        )
    if parallel.expert.size > 1 and model.num_experts % parallel.expert.size:
        yield UserError(
            f"model.num_experts={model.num_experts} is not divisible by parallel.expert.size={parallel.expert.size}",
            f"a divisor of {model.num_experts}",
            "change parallel.expert.size",
        )


def ranks_text(world_size: int) -> str:
    return f"{world_size} rank{'s' if world_size != 1 else ''}"


PARALLEL_RULES: tuple[Callable[[Config], Problems], ...] = (
    _weight_parallel,
    _divisible,
    _pipeline,
    _sharded,
    _sequence_2d,
    _experts,
)
