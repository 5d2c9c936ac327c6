"""What the schema reads and the runtime does not honour: the one place to change when a feature arrives.

A key of ``NOT_YET`` is an error at the start of a run unless it holds a neutral value. A key of ``INERT``, or below
one, is accepted and named in the launch report: whatever it holds changes nothing in what this version runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from evocore.config.problems import shown
from evocore.config.schema import Config
from evocore.config.schema_run import FOREIGN
from evocore.errors import UserError


@dataclass(frozen=True)
class NotYet:
    """``neutral`` values are what the runtime does anyway; ``what`` names the feature."""

    neutral: tuple[Any, ...]
    what: str


_ATTENTION = "this kind of attention"
_STREAM = "streaming data"

NOT_YET: dict[str, NotYet] = {
    # parallel
    "parallel.gqa": NotYet((False,), "a separate group for grouped-query attention"),
    # model
    "model.moe_layer_kwargs.parallel_mode": NotYet((None,), "another way to split an expert"),
    "model.norm_type": NotYet(("rmsnorm",), "layernorm in the decoder"),
    "model.apply_post_layer_norm": NotYet((False,), "post-norm"),
    "model.use_glu": NotYet((None, True), "a feed-forward without gate"),
    "model.dtype": NotYet(("auto", "torch.float16", "torch.bfloat16", "torch.float32"), "tf32"),
    "model.use_logn_attn": NotYet((False,), _ATTENTION),
    "model.scale_attn_weights": NotYet((True,), _ATTENTION),
    "model.drop_rate": NotYet((0.0,), "dropout"),
    "model.attn_drop_rate": NotYet((0.0,), "dropout"),
    "model.init_type": NotYet(("normal",), "uniform initialisation"),
    "model.device": NotYet((None,), "choosing where weights are initialised"),
    "model.is_reward": NotYet((False,), "reward models"),
    "model.inject_info": NotYet((None, {}), "injecting modules into Hugging Face models"),
    # memory and precision
    "output_tf32": NotYet((False,), "another dtype for the model's output"),
    "use_apex_adam": NotYet((False,), "Apex's optimizer"),
    "int8_training": NotYet((False,), "int8 training"),
    "fp8": NotYet((None,), "float8 training"),
    "hybrid_zero_optimizer.clip": NotYet(("global",), "clipping per parameter group"),
    "lr_scheduler.last_epoch": NotYet((-1,), "starting a schedule in its middle"),
    "beta2_scheduler.cur_iter": NotYet((-1,), "starting a schedule in its middle"),
    # data
    "data.type": NotYet(("tokenized", "random"), "this type of data"),
    "data.use_shm": NotYet((False,), "the index in shared memory"),
    "data.bucket_size": NotYet((0,), "sorting samples by length"),
    "data.is_multimodal": NotYet((False,), "multimodal data"),
    "data.image_folder": NotYet((None,), "multimodal data"),
    # checkpoints and monitoring
    "ckpt.oss_snapshot_freq": NotYet((None,), "snapshots between checkpoints"),
    "ckpt.load_ckpt_info.ckpt_type": NotYet(("evocore", *FOREIGN), "loading this checkpoint format"),
    "ckpt.enable_internevo2hf_ckpt": NotYet((False,), "saving in the Hugging Face format"),
    "ckpt.generate_meta_data.enable": NotYet((False,), "metadata for resharding"),
    "ckpt.need_metadata": NotYet((False,), "metadata for resharding"),
    "ckpt.universal_ckpt.enable": NotYet((False,), "InternEvo's universal checkpoint"),
    "monitor.alert.enable_feishu_alert": NotYet((False,), "Feishu alerts"),
    "monitor.alert.light_monitor_address": NotYet((None,), "heartbeats"),
    "resume_tb_folder": NotYet((None,), "going on with a TensorBoard folder"),
    "grad_profiling.grad_norm_profiling": NotYet((False,), "gradient profiling"),
    "grad_profiling.zero_grad_profiling": NotYet((False,), "gradient profiling"),
    "grad_profiling.vocab_grad_norm_profiling": NotYet((False,), "gradient profiling"),
    "gradient_handler": NotYet((None, []), "ColossalAI gradient handlers"),
}

INERT: dict[str, tuple[str, ...]] = {
    "gradients and parameters travel in buckets of reduce_bucket_size": (
        "hybrid_zero_optimizer.use_split_tensor_optim",
        "hybrid_zero_optimizer.all_gather_size",
    ),
    "stages always compute while messages travel": ("parallel.pipeline.interleaved_overlap",),
    "each stack of experts is gathered while the one before it computes": (
        "parallel.expert_weight.launch_allgather_before",
        "parallel.expert_weight.forward_overlap_per",
        "parallel.expert_weight.layer_fuse_isp_comm",
    ),
    "full sharding is PyTorch's fully_shard, block by block, of weights made on the meta device": (
        "parallel.fsdp.mode",
        "parallel.fsdp.init_method",
        "fsdp_wrap_cls",
    ),
    "embedding, head and loss are split by vocabulary wherever layers are split": (
        "model.embed_split_hidden",
        "model.parallel_output",
    ),
    "experts are never padded, travel by all-to-all, and are multiplied in groups by the kernels of the device": (
        "model.moe_layer_kwargs.drop_and_pad",
        "model.moe_layer_kwargs.use_fused_gating",
        "model.moe_layer_kwargs.token_dispatch_policy",
        "model.moe_layer_kwargs.enable_fused_permute",
        "model.moe_layer_kwargs.use_grouped_mlp",
        "model.moe_layer_kwargs.deterministic_mode",
    ),
    "kernels are resolved per device; force one with kernels=dict(op='provider')": (
        "model.use_flash_attn",
        "loss.op_type",
    ),
    "the feature that they belong to is off": (
        "model.dropout_selective_checkpoint",
        "int8_mode",
        "pad_token_id",
        "data.shm_path",
        "data.content_name",
        "data.subset_name",
        "data.image_size",
        "data.patch_size",
        "data.vocab_file",
        "ckpt.async_upload",
        "ckpt.async_upload_tmp_folder",
        "ckpt.snapshot_ckpt_folder",
        "ckpt.generate_meta_data.path",
        "ckpt.universal_ckpt",
        "monitor.alert.feishu_alert_address",
        "monitor.alert.alert_file_path",
        "grad_profiling",
    ),
    "validation goes pack by pack": ("data.valid_micro_num",),
    "slow ranks are not diagnosed yet, and freeing memory is the backend's business": (
        "data.empty_cache_and_diag_interval",
        "data.diag_outlier_ratio",
    ),
    "backends choose their algorithms": ("cudnn_benchmark",),
    "events are written as they come": ("monitor.tensorboard.queue_max_length",),
    "metrics are always computed in float32": ("metric_dtype",),
    "InternEvo keeps a counter there": ("batch_count",),
    "only generating text reads it": ("generation",),
}


def inert_reason(key: str) -> str | None:
    """Why the value of ``key`` changes nothing, None if it does or has to be neutral."""
    if key in NOT_YET:
        return None
    for reason, entries in INERT.items():
        if any(key == entry or key.startswith(f"{entry}.") for entry in entries):
            return reason
    return None


def not_yet(config: Config) -> Iterator[UserError]:
    """One error per key that asks for what the runtime does not do."""
    for key, entry in NOT_YET.items():
        block: Any = config
        *path, last = key.split(".")
        for name in path:
            block = block and getattr(block, name)
        if block is None:
            continue  # an optional block that is absent asks for nothing
        value = getattr(block, last)
        if value not in entry.neutral:
            yield UserError(
                f"{key}={shown(value)}: {entry.what} is not supported yet",
                " or ".join(f"{key}={shown(one)}" for one in entry.neutral),
                f"--set {key}={entry.neutral[0]}",
            )
