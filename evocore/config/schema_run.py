"""The blocks around training: checkpoints, monitoring, generation, and what InternEvo imports from elsewhere."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from evocore.config.schema_base import Block, Count, Interval, Ints, LoadContent, NonNegative, Strings

HUGGING_FACE = ("hf", "hf_llama", "hf_model")
"""Values of ``ckpt_type`` for a folder in Hugging Face's format."""
FOREIGN = (*HUGGING_FACE, "internevo")
"""Those of which the weights alone are read."""


class LoadCkptInfo(Block):
    """A checkpoint to start from."""

    path: str
    """Folder of the checkpoint, with its storage prefix."""
    content: LoadContent = ["model"]
    """Parts to load."""
    ckpt_type: str = "evocore"
    """Format: evocore, internevo, hf (also hf_llama or hf_model), llama or one that a plug-in adds."""


class GenerateMetaData(Block):
    """InternEvo's metadata for resharding."""

    enable: bool = False
    """Write the metadata and exit."""
    path: str | None = None
    """Folder of the metadata."""


class UniversalCkpt(Block):
    """InternEvo's layout-independent checkpoint format."""

    enable: bool = False
    """Whether it is used."""
    aysnc_save: bool = True
    """Save in the background (the key is InternEvo's spelling)."""
    broadcast_load: bool = False
    """One rank reads and broadcasts."""


class Ckpt(Block):
    """Saving and loading checkpoints."""

    enable_save_ckpt: bool = True
    """Whether checkpoints are saved."""
    save_ckpt_folder: str | None = None
    """Folder of the checkpoints, plain or "local:..."; None is the folder of the run."""
    checkpoint_every: Interval = None
    """Steps between checkpoints."""
    keep_last: Count | None = None
    """Newest checkpoints that are kept; None keeps all."""
    load_ckpt_info: LoadCkptInfo | None = None
    """Checkpoint to start from."""
    auto_resume: bool = True
    """Go on from the newest valid checkpoint of the run; it wins over load_ckpt_info."""
    stop_file_path: str | None = None
    """File with an integer: N > 0 saves at step N and stops, N < 0 saves at step -N and goes on."""
    async_upload: bool = False
    """Upload to a remote storage in the background."""
    async_upload_tmp_folder: str | None = None
    """Folder that holds a checkpoint until it is uploaded."""
    oss_snapshot_freq: Interval = None
    """Steps between snapshots, which alternate between two folders."""
    snapshot_ckpt_folder: str | None = None
    """Folder of the snapshots."""
    enable_internevo2hf_ckpt: bool = False
    """Save in the Hugging Face format too."""
    generate_meta_data: GenerateMetaData = GenerateMetaData()
    """Metadata for resharding."""
    need_metadata: bool = False
    """Whether metadata is written with each checkpoint."""
    universal_ckpt: UniversalCkpt = UniversalCkpt()
    """Layout-independent checkpoint format."""


class Alert(Block):
    """Messages to people and to a heartbeat service."""

    enable_feishu_alert: bool = False
    """Send alerts to Feishu."""
    feishu_alert_address: str | None = None
    """Webhook of the alerts."""
    light_monitor_address: str | None = None
    """Address that receives a heartbeat."""
    alert_file_path: str | None = None
    """File that alerts are written to."""


class TensorBoard(Block):
    """The TensorBoard writer."""

    queue_max_length: Count = 1
    """Events held back before they are written."""


class Monitor(Block):
    """Alerts and trackers."""

    alert: Alert = Alert()
    """Messages to people and to a heartbeat service."""
    tensorboard: TensorBoard = TensorBoard()
    """The TensorBoard writer."""


class Generation(Block):
    """Generating text from a checkpoint."""

    ckpt_folder: str | None = None
    """Checkpoint to load."""
    output_folder: str | None = None
    """Folder of the generated text."""
    batch_size: Count = 1
    """Prompts at a time."""
    eos_id: int | Ints | None = None
    """Token or tokens that end a text."""
    bos_id: int | None = None
    """Token that starts a text."""
    pad_id: int | None = None
    """Token that fills a batch."""
    max_length: Count = 100
    """Tokens of prompt and text."""
    do_sample: bool = True
    """Sample instead of taking the most probable token."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits."""
    top_k: NonNegative = 50
    """Sample from this many most probable tokens."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the most probable tokens that hold this much probability."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred."""
    length_penalty: float = 1.0
    """Exponent of the length in beam search."""


class GradProfiling(Block):
    """Gradient statistics per layer."""

    grad_norm_profiling: bool = False
    """Norms of gradients and parameters."""
    zero_grad_profiling: bool = False
    """Share of zeros in gradients."""
    vocab_grad_norm_profiling: bool = False
    """Gradient norm per row of the embedding."""
    interval_steps: Count = 1
    """Steps between statistics."""
    layers: Strings = []
    """Kinds of layers; an empty list is all."""


class CpuOffloading(Block):
    """Activations moved to the host."""

    enable: bool = False
    """Whether it is used."""
    num_layers: NonNegative = 0
    """First layers whose activations are moved; of a pipeline, each chunk's share of them."""


class Hf(Block):
    """A class of transformers trained as it is: of a folder, or by name."""

    path: str | None = None
    """Folder with the config.json of a model; its weights are read by load_ckpt_info."""
    cfg: str | None = None
    """Module of the configuration class, in transformers."""
    cfg_cls: str | None = None
    """Name of the configuration class."""
    cfg_extra_kwargs: dict[str, Any] = {}
    """Arguments of the configuration class, or values over those of config.json."""
    mod: str | None = None
    """Module of the model class, in transformers."""
    mod_cls: str | None = None
    """Name of the model class."""
    attn_implementation: str | None = None
    """Attention of transformers, e.g. "sdpa" or "eager"; None leaves it to the class."""


class FsdpWrapClass(Block):
    """A class that FSDP wraps."""

    mod: str
    """Its module."""
    mod_cls: str
    """Its name."""


class Fp8(Block):
    """InternEvo's experimental float8 training."""

    enable_float8_linear: bool = False
    """Whether linear layers compute in float8."""
    scaling_type_input: Literal["dynamic", "delayed"] = "dynamic"
    """Scaling of the inputs."""
    scaling_type_weight: Literal["dynamic", "delayed"] = "dynamic"
    """Scaling of the weights."""
    scaling_type_grad_output: Literal["dynamic", "delayed"] = "dynamic"
    """Scaling of the output gradients."""
    compile: bool = False
    """Compile the layers."""
