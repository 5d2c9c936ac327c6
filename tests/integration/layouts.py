"""The layouts that must give what one process gives, each as a name, a number of ranks and what it sets.

A case is a config: whoever wants another layout proven adds a line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from evocore.config import load_values
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train

STEPS = 10
TOLERANCE = 1e-5
"""Relative, of loss and gradient norm of each step."""
MICRO_BATCHES = 4
"""Of the whole global batch: data-parallel ranks share them."""

FUSED: dict[str, Any] = dict(model_type="INTERNLM2")
SPLIT: dict[str, Any] = dict(model_type="LLAMA2", model=dict(mlp_layer_fusion=True))
DIALECTS = {"internlm2": FUSED, "llama2": SPLIT}
RECOMPUTE: dict[str, Any] = dict(model=dict(checkpoint=0.5))
ONE_KV_HEAD: dict[str, Any] = dict(model=dict(num_kv_attention_heads=1))
OVERLAP: dict[str, Any] = dict(
    hybrid_zero_optimizer=dict(overlap_sync_grad=True, overlap_sync_param=True, reduce_bucket_size=3000)
)
CUT: dict[str, Any] = dict(data=dict(pack_sample_into_one=True))
"""Documents are cut where a row ends, so that packs hold parts of documents."""


@dataclass(frozen=True)
class Layout:
    """One case: ``sets`` are blocks of a config, merged from left to right.

    Attributes:
        data: data-parallel ranks, which share the micro-batches of a step.
    """

    name: str
    world: int
    data: int
    parallel: dict[str, Any]
    sets: tuple[dict[str, Any], ...] = field(default=())

    def model(self) -> tuple[dict[str, Any], ...]:
        """What the loss depends on, of ``sets``: the reference is trained with this."""
        return tuple(
            {key: block for key, block in one.items() if key in ("model", "model_type", "data")} for one in self.sets
        )


def tensor(size: int, mode: str) -> dict[str, Any]:
    return dict(tensor=dict(size=size, mode=mode))


def isp(sequence: int, weight: int, **settings: Any) -> dict[str, Any]:
    return dict(tensor=dict(size=sequence, mode="isp"), weight=dict(size=weight, **settings))


def zero(size: int) -> dict[str, Any]:
    return dict(zero1=dict(size=size))


ALL_GATHERED = dict(overlap=True, forward_overlap_per="layer", layer_fuse_isp_comm=True)
BY_CALL = dict(overlap=True, forward_overlap_per="module")
FSDP: dict[str, Any] = dict(fsdp=dict(enable=True))


def layouts() -> list[Layout]:
    """Every mode with every dialect, then what people combine, with and without recomputation."""
    found = []
    for dialect, model in DIALECTS.items():
        for mode in ("mtp", "msp", "fsp"):
            found.append(Layout(f"{mode}2-{dialect}", 2, 1, tensor(2, mode), (model,)))
        found += [
            Layout(f"isp-sp2-wp2-{dialect}", 2, 1, isp(2, 2, overlap=True), (model,)),
            Layout(f"zero2-{dialect}", 2, 2, zero(2), (model, OVERLAP)),
            Layout(f"fsdp2-{dialect}", 2, 2, FSDP, (model,)),
        ]
    for suffix, sets in {"": (), "-recompute": (RECOMPUTE,)}.items():
        found += [
            Layout(f"tp2-dp2-zero2{suffix}", 4, 2, tensor(2, "mtp") | zero(2), sets),
            Layout(f"msp2-fsdp2{suffix}", 4, 2, tensor(2, "msp") | FSDP, sets),
            Layout(f"fsp2-zero2{suffix}", 4, 2, tensor(2, "fsp") | zero(2), (*sets, OVERLAP)),
            Layout(f"isp-sp2-wp2-zero{suffix}", 4, 2, isp(2, 2, overlap=True) | zero(-1), (*sets, OVERLAP)),
            Layout(f"isp-sp4-wp2-zero{suffix}", 4, 1, isp(4, 2, **ALL_GATHERED) | zero(2), sets),
            Layout(f"isp-sp1-wp4-zero{suffix}", 4, 4, isp(1, 4, **BY_CALL) | zero(-1), sets),
            Layout(f"dp4-zero1{suffix}", 4, 4, zero(1), (*sets, OVERLAP)),
            Layout(f"dp4-zero2{suffix}", 4, 4, zero(2), (*sets, OVERLAP)),
            Layout(f"dp4-zero4{suffix}", 4, 4, zero(4), sets),
        ]
    return [
        *found,
        Layout("fsdp-hybrid", 4, 4, FSDP | zero(2)),
        Layout("msp4-one-kv-head", 4, 1, tensor(4, "msp"), (ONE_KV_HEAD,)),
        Layout("fsp4-two-kv-heads", 4, 1, tensor(4, "fsp"), (SPLIT,)),
        Layout("isp-sp4-wp1-one-kv-head", 4, 1, isp(4, 1), (ONE_KV_HEAD,)),
        Layout("mtp2-cut-documents", 2, 1, tensor(2, "mtp"), (CUT,)),
        Layout("isp-sp2-wp2-cut-documents", 2, 1, isp(2, 2), (CUT,)),
    ]


# --- running one --------------------------------------------------------------------------------------------------


class _Figures(Observer):
    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []

    def on_step(self, metrics: dict[str, Any]) -> None:
        self.steps.append((metrics["loss"], metrics["grad_norm"]))


def config(folder: str, parallel: dict[str, Any], data: int, sets: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """A config of a tiny model that trains on the corpus in ``folder``."""
    values: dict[str, Any] = dict(
        JOB_NAME="layout",
        model_type="INTERNLM2",
        run_folder=f"{folder}/runs",
        enable_tb=False,
        data=dict(
            seq_len=32,
            micro_bsz=2,
            micro_num=MICRO_BATCHES // data,
            total_steps=STEPS,
            train_folder=f"{folder}/train",
        ),
        model=dict(
            vocab_size=64, hidden_size=32, num_layers=3, num_attention_heads=4, num_kv_attention_heads=2,
            mlp_ratio=2, multiple_of=16, dtype="torch.float32",
        ),
        parallel=parallel,
        adam=dict(lr=3e-3),
        lr_scheduler=dict(eta_min=1e-4, warmup_ratio=0.1),
        hybrid_zero_optimizer=dict(clip_grad_norm=1.0),
        ckpt=dict(enable_save_ckpt=False),
    )  # fmt: skip
    for one in sets:
        for name, block in one.items():
            values[name] = {**values.get(name, {}), **block} if isinstance(block, dict) else block
    return values


def figures(
    folder: str, parallel: dict[str, Any], data: int, sets: tuple[dict[str, Any], ...]
) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, as rank 0 tells them; called on every rank, or alone."""
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    launch = LaunchEnvironment(rank=rank, local_rank=rank, world_size=world, local_world_size=world)
    told = _Figures()
    train(load_values(config(folder, parallel, data, sets)), load_plugins(), launch, observers=[told])
    return told.steps
