"""The blocks of one optimizer step: ZeRO, Adam, schedules, loss scaling and loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from evocore.config.schema_base import Block, Count, NonNegative, as_list

Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NoDecay = Annotated[list[Literal["norm", "bias", "embedding"]], BeforeValidator(as_list)]


class HybridZeroOptimizer(Block):
    """Gradient clipping and the communication of the sharded optimizer."""

    clip_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest gradient norm; 0 does not clip."""
    clip: Literal["global", "group"] = "global"
    """Norm over all parameters, or one per parameter group as InternEvo computes it."""
    overlap_sync_grad: bool = False
    """Reduce gradients during the backward pass."""
    overlap_sync_param: bool = False
    """Gather parameters during the next forward pass."""
    reduce_bucket_size: Count = 512 * 1024 * 1024
    """Gradient elements per reduction."""
    use_split_tensor_optim: bool = False
    """Split every tensor evenly instead of assigning whole tensors to ranks."""
    all_gather_size: Count = 512 * 1024 * 1024
    """Parameter elements per gather."""


class Adam(Block):
    """AdamW."""

    lr: Annotated[float, Field(ge=0)] = 1e-4
    """Peak learning rate."""
    adam_beta1: Beta = 0.9
    """Decay of the first moment."""
    adam_beta2: Beta = 0.95
    """Decay of the second moment."""
    adam_beta2_c: Annotated[float, Field(ge=0)] = 0
    """Exponent of the beta2 schedule; 0 keeps beta2 constant."""
    adam_eps: Positive = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay."""
    no_decay: NoDecay = []
    """Parameters without weight decay; InternEvo decays them all."""


class LrScheduler(Block):
    """Linear warm-up, then cosine decay."""

    total_steps: Count
    """Steps of the schedule; derived: data.total_steps."""
    init_steps: NonNegative = 0
    """Steps with learning rate 0 before the warm-up."""
    warmup_ratio: Share = 0.01
    """Share of the steps that warms up."""
    eta_min: Annotated[float, Field(ge=0)] = 1e-5
    """Learning rate at the end."""
    last_epoch: Annotated[int, Field(ge=-1)] = -1
    """Step that the schedule continues from; -1 starts it."""


class Beta2Scheduler(Block):
    """beta2 = max(init_beta2, 1 - 1 / step**c) for c > 0."""

    init_beta2: Beta
    """Smallest beta2; derived: adam.adam_beta2."""
    c: Annotated[float, Field(ge=0)]
    """Exponent; derived: adam.adam_beta2_c."""
    cur_iter: Annotated[int, Field(ge=-1)] = -1
    """Step that the schedule continues from; -1 starts it."""


class Fp16Scaler(Block):
    """Limits of the loss scale."""

    initial_scale: Positive = 2**16
    """Loss scale of the first step."""
    min_scale: Positive | None = 1
    """Smallest loss scale."""
    growth_interval: Count = 1000
    """Steps without overflow before the scale grows."""


class GradScaler(Block):
    """Dynamic loss scaling."""

    fp16: Fp16Scaler = Fp16Scaler()
    """Limits of the loss scale."""
    growth_factor: Annotated[float, Field(gt=1)] = 2
    """Factor by which the scale grows."""
    backoff_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor by which the scale shrinks after overflows."""
    max_scale: Positive | None = 2**24
    """Largest loss scale."""
    hysteresis: Count = 2
    """Overflows before the scale shrinks."""
    bf16: bool = False
    """Scale bfloat16 losses too, as InternEvo does."""


class Loss(Block):
    """Cross entropy and the auxiliary losses."""

    label_smoothing: Share = 0.0
    """Probability spread over the whole vocabulary."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Factor of the squared log-partition penalty."""
    op_type: Literal["torch_naive", "apex_naive", "py_naive", "flash_vocab_parallel", "py_vocab_parallel"] = (
        "py_vocab_parallel"
    )
    """InternEvo's choice of a cross-entropy implementation; evocore resolves kernels per device."""
    moe_loss_coeff: Annotated[float, Field(ge=0)] = 1.0
    """Factor of the load-balancing loss of experts."""
    moe_z_loss_coeff: Annotated[float, Field(ge=0)] = 0.0
    """Factor of the router's z-loss, which keeps its logits small."""
    mtp_loss_coeff: Annotated[float, Field(ge=0)] = 0.3
    """Factor of the multi-token-prediction loss."""
