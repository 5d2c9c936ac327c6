"""The layouts that must give what one process gives, each as a name, a number of ranks and what it sets.

A case is a config: whoever wants another layout proven adds a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from evocore import hookimpl
from evocore.config import load_values
from evocore.models.decoder.model import Decoder
from evocore.models.decoder.spec import from_settings
from evocore.nn.family import ModelFamily, Numerics
from evocore.parallel.launch import LaunchEnvironment
from evocore.plugins.manager import load_plugins
from evocore.training.observer import Observer
from evocore.training.run import train


class TiedFamily:
    """Plug-in with InternLM2 whose head is its embedding."""

    @hookimpl
    def evocore_models(self) -> list[ModelFamily]:
        return [ModelFamily("TIED", f"{__name__}:build_tied")]


def build_tied(settings: Mapping[str, Any], numerics: Numerics) -> Decoder:
    return Decoder(from_settings(settings, numerics, fused_qkv=True, tied=True))


STEPS = 10
TOLERANCE = 1e-5
"""Relative, of loss and gradient norm of each step."""
MICRO_BATCHES = 4
"""Of the whole global batch: data-parallel ranks share them."""

FUSED: dict[str, Any] = dict(model_type="INTERNLM2")
TIED: dict[str, Any] = dict(model_type="TIED")
SPLIT: dict[str, Any] = dict(model_type="LLAMA2", model=dict(mlp_layer_fusion=True))
DIALECTS = {"internlm2": FUSED, "llama2": SPLIT}
RECOMPUTE: dict[str, Any] = dict(model=dict(checkpoint=0.5))
KEEP_ATTENTION: dict[str, Any] = dict(model=dict(checkpoint=0.67), selective_checkpoint=True)
MOVE_ATTENTION: dict[str, Any] = KEEP_ATTENTION | dict(selective_checkpoint_offload=True)
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
            {key: block for key, block in one.items() if key in ("model", "model_type", "data", "loss")}
            for one in self.sets
            if one is not TWO_CHUNKS
        )


def tensor(size: int, mode: str) -> dict[str, Any]:
    return dict(tensor=dict(size=size, mode=mode))


def isp(sequence: int, weight: int, **settings: Any) -> dict[str, Any]:
    return dict(tensor=dict(size=sequence, mode="isp"), weight=dict(size=weight, **settings))


def two(head: int, context: int, window: int, weight: int = 1, **placement: bool) -> dict[str, Any]:
    """Two-dimensional sequence parallelism."""
    grid = dict(enable=True, head_size=head, context_size=context, window_size=window)
    grid |= dict(device_placement_strategy=placement) if placement else {}
    return isp(head * context, weight, overlap=weight > 1) | dict(sequence_2D=grid)


def zero(size: int) -> dict[str, Any]:
    return dict(zero1=dict(size=size))


def move(blocks: int) -> dict[str, Any]:
    """What the first blocks keep, to the host."""
    return dict(cpu_offloading=dict(enable=True, num_layers=blocks))


ALL_GATHERED = dict(overlap=True, forward_overlap_per="layer", layer_fuse_isp_comm=True)
BY_CALL = dict(overlap=True, forward_overlap_per="module")
FSDP: dict[str, Any] = dict(fsdp=dict(enable=True))


def pipeline(size: int, schedule: str = "1F1B", **settings: Any) -> dict[str, Any]:
    return dict(pipeline=dict(size=size, mode=schedule, **settings))


def deep(layers: int) -> dict[str, Any]:
    return dict(model=dict(num_layers=layers))


TWO_CHUNKS: dict[str, Any] = dict(model=dict(num_chunks=2))
SCHEDULES: dict[str, tuple[str, tuple[dict[str, Any], ...]]] = {
    "1f1b": ("1F1B", ()),
    "interleaved": ("1F1B", (TWO_CHUNKS,)),
    "zbh1": ("ZBH1", ()),
    "zbv": ("ZBV", ()),
}


def pipelines() -> list[Layout]:
    """Every schedule on two and four stages; then what else shares a stage, each with two of them."""
    found = []
    for name, (schedule, chunks) in SCHEDULES.items():
        four, two_stages = (deep(4), *chunks), pipeline(2, schedule)
        found += [
            Layout(f"pp2-{name}", 2, 1, two_stages, four),
            Layout(f"pp4-{name}", 4, 1, pipeline(4, schedule), (deep(8), *chunks)),
        ]
        if name in ("1f1b", "zbv"):
            sharded = tensor(2, "mtp") | zero(-1)
            found += [
                Layout(f"pp2-{name}-mtp2-recompute", 4, 1, two_stages | sharded, (*four, RECOMPUTE)),
                Layout(f"pp2-{name}-isp-recompute", 4, 1, two_stages | isp(2, 2, overlap=True), (*four, RECOMPUTE)),
                Layout(f"pp2-{name}-fsdp2", 4, 2, two_stages | FSDP, (*four, OVERLAP)),
            ]
        else:
            found += [
                Layout(f"pp2-{name}-zero2", 4, 2, two_stages | zero(2), (*four, OVERLAP)),
                Layout(f"pp2-{name}-fsp2", 4, 1, two_stages | tensor(2, "fsp"), four),
            ]
    return [
        *found,
        Layout("pp2-uneven-recompute", 2, 1, pipeline(2, layers=[1, 2]), (RECOMPUTE,)),
        Layout("pp2-llama2-zbh1", 2, 1, pipeline(2, "ZBH1"), (SPLIT,)),
        Layout("pp2-tied-1f1b", 2, 1, pipeline(2), (TIED,)),
        Layout("pp2-tied-zbv-zero2", 4, 2, pipeline(2, "ZBV") | zero(2), (deep(4), TIED, OVERLAP)),
        Layout("pp2-tied-mtp2", 4, 1, pipeline(2, "ZBH1") | tensor(2, "mtp"), (TIED,)),
        Layout("pp2-tied-zero2", 4, 2, pipeline(2) | zero(2), (TIED, OVERLAP)),
        Layout("pp2-interleaved-fsdp2-recompute", 4, 2, pipeline(2) | FSDP, (deep(4), TWO_CHUNKS, RECOMPUTE)),
        Layout("pp2-zbv-fsdp2-tied-recompute", 4, 2, pipeline(2, "ZBV") | FSDP, (deep(4), TIED, RECOMPUTE)),
        Layout("pp2-ep2-fsdp2", 4, 2, pipeline(2) | share_experts(2) | FSDP, (DROPLESS,)),
        Layout("pp2-tied-isp", 4, 1, pipeline(2) | isp(2, 2, overlap=True), (TIED, OVERLAP)),
        Layout("msp2-tied", 2, 1, tensor(2, "msp"), (TIED, OVERLAP)),
        Layout("isp-sp2-wp2-tied", 2, 1, isp(2, 2, overlap=True) | zero(-1), (TIED, OVERLAP)),
        Layout("fsdp2-tied", 2, 2, FSDP, (TIED,)),
        Layout("tp2-pp2-dp2-zero2", 8, 2, tensor(2, "mtp") | pipeline(2) | zero(2), (OVERLAP,)),
    ]


def experts(kind: str, **options: Any) -> dict[str, Any]:
    """A mixture of 4 experts, 2 for each token and one for all, with both auxiliary losses."""
    model = dict(num_experts=4, top_k=2, num_shared_experts=1, mlp_ratio=1, moe_type=kind, moe_layer_kwargs=options)
    return dict(model_type="INTERNLM_MoE", loss=dict(moe_loss_coeff=0.05, moe_z_loss_coeff=1e-3), model=model)


DROPLESS = experts("Dropless")
TOGETHER = experts("Dropless", aux_loss_by_layer=False)
LIMIT = dict(capacity_factor=0.75, min_capacity=1)
JITTER = experts("GShard", **LIMIT, noisy_gate_policy="Jitter")
BY_CHANCE = experts("GShard", **LIMIT, noisy_gate_policy="RSample")
BY_CHANCE["model"]["top_k"] = 1  # of which those that a full expert drops are drawn, too
GSHARD = experts("GShard", capacity_factor=0.75, min_capacity=1)
DEEPSEEK = experts(
    "Dropless", scoring_func="sigmoid", num_expert_groups=2, top_k_groups=1, bias_update_rate=0.01,
    routed_scaling_factor=2.5, shared_expert_gate=True,
)  # fmt: skip


def share_experts(ranks: int, *, zero: int = -1, weight: int = 1, no_tp: bool = False) -> dict[str, Any]:
    sharded = dict(size=weight, overlap=weight == 2)
    return dict(expert=dict(size=ranks, no_tp=no_tp), expert_zero1=dict(size=zero), expert_weight=sharded)


def mixtures() -> list[Layout]:
    """Experts shared in every way, with each kind of routing."""
    return [
        Layout("ep2", 2, 2, share_experts(2), (DROPLESS,)),
        Layout("ep2-no-tp-mtp2", 2, 1, share_experts(2, no_tp=True) | tensor(2, "mtp"), (GSHARD,)),
        Layout("ep2-fsdp2", 2, 2, share_experts(2) | FSDP, (DROPLESS,)),
        Layout("ep2-mtp2", 4, 2, share_experts(2) | tensor(2, "mtp"), (TOGETHER, RECOMPUTE)),
        Layout("ep2-fsp2-recompute", 4, 2, share_experts(2) | tensor(2, "fsp"), (GSHARD, RECOMPUTE)),
        Layout("ep4-no-tp-msp2", 4, 2, share_experts(4, no_tp=True) | tensor(2, "msp"), (DEEPSEEK,)),
        Layout("ep4-zero2", 4, 4, share_experts(4) | zero(2), (BY_CHANCE, OVERLAP)),
        Layout("ep2-zero4-expert-zero2", 4, 4, share_experts(2, zero=2) | zero(4), (GSHARD, OVERLAP)),
        Layout("ep2-zero2-expert-zero1", 4, 4, share_experts(2, zero=1) | zero(2), (DEEPSEEK,)),
        Layout("isp-ep2-ewp2", 4, 2, share_experts(2, weight=2) | isp(2, 2, overlap=True), (TOGETHER,)),
        Layout("isp-ep1-ewp4-recompute", 4, 1, share_experts(1, weight=4) | isp(4, 2), (GSHARD, RECOMPUTE)),
        Layout("isp-ewp2-only", 4, 4, share_experts(1, weight=2) | isp(1, 1), (DEEPSEEK, OVERLAP)),
        Layout("isp-context2-ep4", 4, 2, share_experts(4) | two(1, 2, 1), (JITTER,)),
        Layout("pp2-ep2", 4, 2, share_experts(2) | pipeline(2), (BY_CHANCE, RECOMPUTE)),
        Layout(
            "pp2-zbv-ewp2", 4, 1, share_experts(1, weight=2) | pipeline(2, "ZBV") | isp(2, 2), (DEEPSEEK, deep(4))
        ),
    ]


DEEPSEEK_V3: dict[str, Any] = dict(
    model_type="DEEPSEEK_V3",
    loss=dict(moe_loss_coeff=0.05, moe_z_loss_coeff=1e-3),
    model=dict(
        num_kv_attention_heads=4, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, extra_pred_tokens=1, num_experts=4, top_k=2, num_shared_experts=1, moe_type="Dropless",
        moe_intermediate_size=16, first_k_dense_replace=1,
        moe_layer_kwargs=dict(num_expert_groups=2, top_k_groups=1, bias_update_rate=0.01, routed_scaling_factor=2.5),
    ),
)  # fmt: skip
QWEN3: dict[str, Any] = dict(model_type="QWEN3", model=dict(head_dim=16))
GEMMA2: dict[str, Any] = dict(
    model_type="GEMMA2",
    model=dict(
        use_sliding_window=True, sliding_window=8, query_pre_attn_scalar=4, attn_logit_softcapping=1.0,
        final_logit_softcapping=2.0,
    ),
)  # fmt: skip
DYNAMIC: dict[str, Any] = dict(model=dict(rope_type="dynamic", rope_scaling_factor=2.0, max_position_embeddings=16))


def families() -> list[Layout]:
    """Options of families of which each rank has a part, or sees a part."""
    return [
        Layout("mtp4-qwen3-shared-kv-heads-zero", 4, 1, tensor(4, "mtp"), (QWEN3, OVERLAP)),
        Layout("msp2-qwen3", 2, 1, tensor(2, "msp"), (QWEN3,)),
        Layout("mtp2-fsdp2-qwen3", 4, 2, tensor(2, "mtp") | FSDP, (QWEN3,)),
        Layout("isp-sp2-wp2-qwen3-dynamic", 2, 1, isp(2, 2, overlap=True), (QWEN3, DYNAMIC)),
        Layout("isp-sp2-wp2-gemma2-recompute", 2, 1, isp(2, 2), (GEMMA2, RECOMPUTE)),
        Layout(
            "pp2-zbv-fsp2-gemma2-recompute", 4, 1, pipeline(2, "ZBV") | tensor(2, "fsp"), (GEMMA2, deep(4), RECOMPUTE)
        ),
        Layout("pp2-gemma2", 2, 1, pipeline(2), (GEMMA2,)),
        Layout("mtp2-deepseek-v3", 2, 1, tensor(2, "mtp"), (DEEPSEEK_V3,)),
        Layout(
            "ep2-fsp2-zero2-deepseek-v3-recompute",
            4,
            2,
            share_experts(2) | tensor(2, "fsp") | zero(2),
            (DEEPSEEK_V3, RECOMPUTE, OVERLAP),
        ),
        Layout("isp-sp2-wp2-deepseek-v3", 2, 1, isp(2, 2, overlap=True), (DEEPSEEK_V3,)),
        Layout("pp2-zbv-msp2-deepseek-v3", 4, 1, pipeline(2, "ZBV") | tensor(2, "msp"), (DEEPSEEK_V3, deep(4))),
    ]  # fmt: skip


def activation_memory() -> list[Layout]:
    """Attention kept, and activations on the host, where layers communicate and weights come and go."""
    return [
        Layout("isp-sp2-wp2-keep-attention", 2, 1, isp(2, 2, overlap=True), (KEEP_ATTENTION,)),
        Layout("isp-context2-move-attention", 2, 1, two(1, 2, 1), (MOVE_ATTENTION, CUT)),
        Layout("pp2-zbv-move", 2, 1, pipeline(2, "ZBV"), (deep(4), move(3))),
        Layout("pp2-move-both", 2, 1, pipeline(2), (deep(4), MOVE_ATTENTION, move(2))),
        Layout("fsdp2-move", 2, 2, FSDP, (move(2),)),
        Layout("isp-ewp2-move", 2, 2, share_experts(1, weight=2) | isp(1, 1), (DROPLESS, move(3))),
    ]


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
            Layout(f"isp-head2-context2-wp2-zero{suffix}", 4, 1, two(2, 2, 2, weight=2) | zero(-1), sets),
            Layout(f"dp4-zero1{suffix}", 4, 4, zero(1), (*sets, OVERLAP)),
            Layout(f"dp4-zero2{suffix}", 4, 4, zero(2), (*sets, OVERLAP)),
            Layout(f"dp4-zero4{suffix}", 4, 4, zero(4), sets),
        ]
    return [
        *found,
        *pipelines(),
        *mixtures(),
        *activation_memory(),
        *families(),
        Layout("fsdp-hybrid", 4, 4, FSDP | zero(2)),
        Layout("msp4-one-kv-head", 4, 1, tensor(4, "msp"), (ONE_KV_HEAD,)),
        Layout("fsp4-two-kv-heads", 4, 1, tensor(4, "fsp"), (SPLIT,)),
        Layout("isp-sp4-wp1-one-kv-head", 4, 1, isp(4, 1), (ONE_KV_HEAD,)),
        Layout("isp-context2-dp2-zero", 4, 2, two(1, 2, 1) | zero(-1), (SPLIT,)),
        Layout("isp-head2-context2-window1-cut-documents", 4, 1, two(2, 2, 1), (CUT,)),
        Layout("isp-head2-context2-window2-context-first", 4, 1, two(2, 2, 2, head_first=False)),
        Layout("isp-context4-window2-cut-documents-recompute", 4, 1, two(1, 4, 2), (CUT, RECOMPUTE)),
        Layout("isp-context4-interleaved", 4, 1, two(1, 4, 1, head_first=False, interleaved=True)),
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
    registry = load_plugins()
    registry.register(TiedFamily(), "tied")
    train(load_values(config(folder, parallel, data, sets)), registry, launch, observers=[told])
    return told.steps
