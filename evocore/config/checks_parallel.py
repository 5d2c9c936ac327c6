"""Launch constraints on the block ``parallel`` and on what it splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from evocore.config.checks_pipeline import pipeline_problems
from evocore.config.schema import Config
from evocore.errors import UserError

Problems = Iterator[UserError]


def size_problems(config: Config, world_size: int) -> list[UserError]:
    """Everything that keeps the sizes of ``parallel`` from dividing the ranks and the model, supported yet or not."""
    problems = list(ranks(config, world_size))
    for rule in PARALLEL_RULES:
        problems += rule(config)
    return problems


def ranks(config: Config, world_size: int) -> Problems:
    """Whether the ranks are a multiple of what shares them, and the replicas of what shares their optimizer state."""
    parallel = config.parallel
    pipeline, problems = parallel.pipeline.size, 0
    sharing = [("tensor", parallel.tensor.size)]
    if parallel.tensor.mode == "isp":
        sharing.append(("weight", parallel.weight.size))
    for block, size in sharing:
        if world_size % (size * pipeline):
            problems += 1
            yield UserError(
                f"parallel.{block}.size={size} times parallel.pipeline.size={pipeline} does not divide "
                f"{ranks_text(world_size)}",
                f"a number of ranks that is a multiple of {size * pipeline}",
                "change a size or the number of ranks",
            )
    if not problems:
        yield from _zero(config, world_size // _ranks_per_replica(config))
        yield from _divided_by_experts(config, world_size // pipeline)


def _ranks_per_replica(config: Config) -> int:
    """Ranks that hold one copy of the weights."""
    parallel = config.parallel
    return parallel.pipeline.size * (parallel.weight if parallel.tensor.mode == "isp" else parallel.tensor).size


def _zero(config: Config, replicas: int) -> Problems:
    size = config.parallel.zero1.size
    if size > 1 and replicas % size:
        which = "weight-data" if config.parallel.tensor.mode == "isp" else "data-parallel"
        yield UserError(
            f"parallel.zero1.size={size} does not divide the {replicas} {which} ranks",
            f"a divisor of {replicas}, or -1 for all",
            "set parallel.zero1.size=1",
        )


def expert_tensor_size(config: Config) -> int:
    """Ranks that share one expert as tensor parallelism does: in isp its weights are sharded instead."""
    parallel = config.parallel
    return 1 if parallel.expert.no_tp or parallel.tensor.mode == "isp" else parallel.tensor.size


def expert_size(config: Config, stage: int) -> int:
    """Ranks that share the experts, of the ``stage`` ranks of one pipeline stage; 1 for a dense model."""
    parallel, experts = config.parallel, config.model.num_experts
    if experts == 1 or parallel.expert.size > 0:
        return 1 if experts == 1 else parallel.expert.size
    return min(stage if parallel.expert.no_tp else stage // parallel.tensor.size, experts)


def _divided_by_experts(config: Config, stage: int) -> Problems:
    """Whether one stage's ranks are a multiple of what shares the experts."""
    parallel, experts = config.parallel, config.model.num_experts
    if experts == 1:
        return
    size, tensor, weight = expert_size(config, stage), expert_tensor_size(config), parallel.expert_weight.size
    if parallel.expert.size <= 0 and experts % size:
        yield UserError(
            f"parallel.expert.size={parallel.expert.size} means {size} ranks, and model.num_experts={experts} is not "
            f"divisible by {size}",
            f"a divisor of {experts}",
            "name parallel.expert.size",
        )
    if stage % (size * tensor * weight):
        yield UserError(
            f"parallel.expert.size={size} times parallel.expert_weight.size={weight} times {tensor} for tensor "
            f"parallelism does not divide the {stage} ranks of a pipeline stage",
            f"a divisor of {stage}",
            "change parallel.expert.size, parallel.expert_weight.size or the number of ranks",
        )
        return
    replicas, zero = stage // (size * tensor * weight), parallel.expert_zero1.size
    if zero > 1 and replicas % zero:
        yield UserError(
            f"parallel.expert_zero1.size={zero} does not divide the {replicas} expert-data ranks",
            f"a divisor of {replicas}, or -1 for all",
            "set parallel.expert_zero1.size=-1",
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
    two = parallel.sequence_2D
    by_heads, heads = (
        ("parallel.sequence_2D.head_size", two.head_size) if two.enable else ("parallel.tensor.size", tensor)
    )
    shared = heads % model.num_kv_attention_heads == 0  # several ranks have the same key-value head
    splits = [
        ("model.vocab_size", model.vocab_size, "parallel.tensor.size", tensor, True),
        ("model.vocab_size", model.vocab_size, "parallel.weight.size", parallel.weight.size, True),
        ("model.num_attention_heads", model.num_attention_heads, by_heads, heads, True),
        ("model.num_kv_attention_heads", model.num_kv_attention_heads, by_heads, heads, not shared),
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


def _sharded(config: Config) -> Problems:
    if config.parallel.zero1.fsdp or config.parallel.fsdp.enable:
        if config.parallel.tensor.mode == "isp":
            yield UserError(
                "parallel.tensor.mode='isp' with fully sharded data parallelism",
                "one of the two, as both gather weights for each use",
                "turn one of them off",
            )
        if config.parallel.zero1.size == 1:
            yield UserError(
                "parallel.zero1.size=1 with fully sharded data parallelism",
                "more than one rank to share the weights, or -1 for all data-parallel ranks",
                "set parallel.zero1.size=-1, or turn full sharding off",
            )


LARGEST_INTERLEAVED = 7
"""Largest window whose ranks can be interleaved: larger ones span all network cards of a machine anyway."""


def interleaves(config: Config) -> bool:
    """Whether the ranks of windows alternate: InternEvo leaves single and large windows in order."""
    two = config.parallel.sequence_2D
    asked = two.enable and two.device_placement_strategy.interleaved
    return asked and two.window_size <= LARGEST_INTERLEAVED and two.window_size != two.context_size


def _sequence_2d(config: Config) -> Problems:
    two = config.parallel.sequence_2D
    placement, tensor = two.device_placement_strategy, config.parallel.tensor.size
    if not two.enable:
        return
    if config.parallel.tensor.mode != "isp":
        yield UserError(
            f"parallel.sequence_2D.enable=True with parallel.tensor.mode={config.parallel.tensor.mode!r}",
            "two-dimensional sequence parallelism only in mode 'isp'",
            "set parallel.tensor.mode='isp' or parallel.sequence_2D.enable=False",
        )
    if two.context_size > 1 and config.data.packed_length % (2 * two.context_size):
        yield UserError(
            f"data.packed_length={config.data.packed_length} is not divisible by {2 * two.context_size}, twice "
            f"parallel.sequence_2D.context_size={two.context_size}",
            "two equal chunks of each pack for every rank that shares the context",
            "change data.packed_length or parallel.sequence_2D.context_size",
        )
    if two.context_size > 1 and config.model.use_sliding_window:
        yield UserError(
            f"model.use_sliding_window=True with parallel.sequence_2D.context_size={two.context_size}",
            "attention to the whole context where ranks share it",
            "set parallel.sequence_2D.context_size=1 and head_size to the tensor size",
        )
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
    elif interleaves(config) and two.context_size % (2 * two.window_size):
        yield UserError(
            f"parallel.sequence_2D.device_placement_strategy.interleaved=True with "
            f"{two.context_size // two.window_size} windows",
            "an even number of windows, context_size / window_size",
            "change parallel.sequence_2D.window_size, or set interleaved=False",
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
    pipeline_problems,
    _sharded,
    _sequence_2d,
    _experts,
)
