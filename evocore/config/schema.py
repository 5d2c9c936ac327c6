"""The whole config as one typed tree. The attribute names are InternEvo's keys, so its files load as they are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from evocore.config.schema_base import Block, CommDType, NonNegative, as_list
from evocore.config.schema_data import Data
from evocore.config.schema_kernels import KernelsCheck
from evocore.config.schema_model import Model
from evocore.config.schema_parallel import Parallel
from evocore.config.schema_run import (
    Ckpt,
    CpuOffloading,
    Fp8,
    FsdpWrapClass,
    Generation,
    GradProfiling,
    Hf,
    Monitor,
)
from evocore.config.schema_training import Adam, Beta2Scheduler, GradScaler, HybridZeroOptimizer, Loss, LrScheduler


class Config(Block):
    """Everything that a run is told."""

    JOB_NAME: str = "AnonymousJob"
    """Name of the run's folder and of its alerts."""
    model_type: str = "INTERNLM"
    """Model family."""
    backend: str | None = None
    """Device plug-in; None chooses the available one of highest priority."""
    kernels: dict[str, str] = {}
    """Kernel provider to force, by op."""
    kernels_check: KernelsCheck | None = None
    """References beside the chosen kernels on some steps; None checks nothing."""
    seed: int = 1024
    """Seed of the initial weights."""
    run_folder: str = "runs"
    """Folder that holds one folder per job."""
    data: Data
    """Training and validation data."""
    model: Model
    """The decoder."""
    parallel: Parallel = Parallel()
    """Sizes and modes of every kind of parallelism."""
    hybrid_zero_optimizer: HybridZeroOptimizer = HybridZeroOptimizer()
    """Gradient clipping and the communication of the sharded optimizer."""
    adam: Adam = Adam()
    """AdamW."""
    lr_scheduler: LrScheduler
    """Linear warm-up, then cosine decay."""
    beta2_scheduler: Beta2Scheduler
    """Schedule of Adam's beta2."""
    grad_scaler: GradScaler = GradScaler()
    """Dynamic loss scaling."""
    loss: Loss = Loss()
    """Cross entropy and the auxiliary losses."""
    ckpt: Ckpt = Ckpt()
    """Saving and loading checkpoints."""
    monitor: Monitor = Monitor()
    """Alerts and trackers."""
    generation: Generation | None = None
    """Generating text from a checkpoint."""
    use_fp32_norm: bool = False
    """Normalisation layers keep float32 parameters."""
    cudnn_benchmark: bool = False
    """Let the backend time several algorithms and keep the fastest."""
    cudnn_deterministic: bool = False
    """Ask the backend for deterministic algorithms."""
    enable_tb: bool = True
    """Write TensorBoard events."""
    tensorboard_folder: str | None = None
    """Folder of the TensorBoard events; None is the folder of the run."""
    resume_tb_folder: str | None = None
    """TensorBoard folder to go on with."""
    metric_dtype: str | None = None
    """"fp32" computes InternEvo's metrics in float32."""
    output_tf32: bool = False
    """Model output in float32."""
    use_apex_adam: bool = False
    """Apex's Adam instead of PyTorch's."""
    reduce_comm_dtype: CommDType | None = None
    """Type in which gradients are reduced; None is the model's."""
    batch_count: NonNegative = 0
    """Counter that InternEvo keeps in the config."""
    selective_checkpoint: bool = False
    """Layers that are recomputed keep the result of attention."""
    selective_checkpoint_offload: bool = False
    """They keep it on the host."""
    cpu_offloading: CpuOffloading = CpuOffloading()
    """Activations moved to the host."""
    grad_profiling: GradProfiling = GradProfiling()
    """Gradient statistics per layer."""
    hf: Hf | None = None
    """A Hugging Face model trained as it is."""
    fsdp_wrap_cls: Annotated[list[FsdpWrapClass], BeforeValidator(as_list)] | None = None
    """Classes that FSDP wraps."""
    pad_token_id: int | None = None
    """Padding token of an imported Hugging Face model."""
    int8_training: bool = False
    """InternEvo's experimental int8 training."""
    int8_mode: str | None = None
    """Granularity of int8 training."""
    fp8: Fp8 | None = None
    """Experimental float8 training."""
    gradient_handler: list[dict[str, Any]] | None = None
    """ColossalAI gradient handlers."""

    def family_settings(self) -> dict[str, Any]:
        """What a model family builds a model of: the block ``model``, and ``hf`` if there is one."""
        return self.model.model_dump() | ({} if self.hf is None else {"hf": self.hf.model_dump()})
