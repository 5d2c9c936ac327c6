"""The block ``parallel``: how many ranks share what. InternEvo's bare integers are accepted for every size."""

from __future__ import annotations

from typing import Literal

from evocore.config.schema_base import Block, Count, Ints, PipelineMode


class Zero1(Block):
    """Optimizer-state sharding."""

    size: int = -1
    """Ranks that share one copy of the optimizer state; 0 or less is all data-parallel ranks, 1 is no sharding."""
    fsdp: bool = False
    """InternEvo's early switch to PyTorch FSDP."""


class Tensor(Block):
    """Tensor and sequence parallelism."""

    size: Count = 1
    """Ranks that share one layer (mtp, msp, fsp) or one sequence (isp)."""
    mode: Literal["mtp", "msp", "fsp", "isp"] = "mtp"
    """Megatron tensor, Megatron sequence, fully-gathered sequence, or intern sequence parallelism."""


class Pipeline(Block):
    """Pipeline parallelism."""

    size: Count = 1
    """Stages."""
    interleaved_overlap: bool = False
    """InternEvo's switch; here stages always compute while messages travel."""
    mode: PipelineMode = "1F1B"
    """Schedule: one-forward-one-backward or a zero-bubble one."""
    layers: Ints | None = None
    """Layers of each chunk, from the first chunk of the model to the last; None deals them out evenly."""


class Weight(Block):
    """Weight parallelism of isp: each rank keeps a slice of every weight."""

    size: Count = 1
    """Ranks that share the weights."""
    overlap: bool = False
    """Gather weights and reduce gradients while computing."""
    launch_allgather_before: Literal["wqkv", "attn", "wo", "w1"] = "wo"
    """Module before which the next layer's gather starts."""
    forward_overlap_per: Literal["layer", "module"] = "layer"
    """Granularity of the overlap in the forward pass."""
    layer_fuse_isp_comm: bool = False
    """One gather for all weights of a layer."""
    early_reduce_scatter_release: bool = True
    """Release reduced gradients before the step."""


class Expert(Block):
    """Expert parallelism."""

    size: int = -1
    """Ranks that share the experts; 0 or less is as many as possible."""
    no_tp: bool = False
    """Experts are not split by tensor parallelism."""


class ExpertZero1(Block):
    """Optimizer-state sharding of the experts."""

    size: int = -1
    """Ranks that share one copy of the experts' optimizer state; 0 or less is all of them."""


class DevicePlacement(Block):
    """Which ranks of the two-dimensional sequence group are neighbours."""

    head_first: bool = True
    """Ranks of a head group are neighbours; otherwise those of a context group."""
    interleaved: bool = False
    """Alternate the ranks of a window over the network cards."""


class Sequence2D(Block):
    """Head parallelism times context parallelism (LoongTrain)."""

    enable: bool = False
    """Whether it is used."""
    head_size: Count = 1
    """Ranks that share the heads."""
    context_size: Count = 1
    """Ranks that share the context."""
    window_size: Count = 1
    """Ranks of one inner ring."""
    device_placement_strategy: DevicePlacement = DevicePlacement()
    """Which ranks are neighbours."""


class Fsdp(Block):
    """PyTorch fully sharded data parallelism."""

    enable: bool = False
    """Whether it is used."""
    mode: Literal["v1", "v2"] = "v1"
    """Generation of the PyTorch interface."""
    init_method: Literal["cuda", "cpu", "meta"] = "meta"
    """Where parameters are initialised."""


class Parallel(Block):
    """Sizes and modes of every kind of parallelism."""

    zero1: Zero1 = Zero1()
    """Optimizer-state sharding."""
    tensor: Tensor = Tensor()
    """Tensor and sequence parallelism."""
    pipeline: Pipeline = Pipeline()
    """Pipeline parallelism."""
    weight: Weight = Weight()
    """Weight parallelism of isp."""
    expert: Expert = Expert()
    """Expert parallelism."""
    expert_weight: Weight = Weight()
    """Weight parallelism of the experts."""
    expert_zero1: ExpertZero1 = ExpertZero1()
    """Optimizer-state sharding of the experts."""
    sequence_2D: Sequence2D = Sequence2D()  # noqa: N815 - InternEvo's key
    """Head parallelism times context parallelism."""
    fsdp: Fsdp = Fsdp()
    """PyTorch fully sharded data parallelism."""
    gqa: bool = False
    """InternEvo's extra process group for grouped-query attention."""
