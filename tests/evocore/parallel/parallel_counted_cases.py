"""Tiny trainings whose exchanges and storages are counted, and configs to make more of them."""

from dataclasses import dataclass, field

from evocore.config import load_values

STEPS = 3
VOCAB, TOKENS = 64, 32

MODEL = dict(
    vocab_size=VOCAB, hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_attention_heads=2,
    mlp_ratio=2, multiple_of=16, dtype="torch.float32",
)  # fmt: skip
SMALL_BUCKETS = dict(reduce_bucket_size=4000)
LLAMA = dict(model_type="LLAMA2")


@dataclass(frozen=True)
class Case:
    """One layout and what else the config says; ``blocks`` override the tiny config key by key."""

    world: int
    parallel: dict = field(default_factory=dict)
    blocks: dict = field(default_factory=dict)

    def config(self, folder="unused"):
        values = dict(
            JOB_NAME="counted",
            model_type="INTERNLM2",
            run_folder=str(folder),
            enable_tb=False,
            data=dict(seq_len=TOKENS, micro_bsz=1, micro_num=1, total_steps=STEPS),
            model=MODEL,
            parallel=dict(zero1=dict(size=1)) | self.parallel,
            hybrid_zero_optimizer=dict(clip_grad_norm=1.0),
            ckpt=dict(enable_save_ckpt=False),
        )
        for name, block in self.blocks.items():
            values[name] = {**values.get(name, {}), **block} if isinstance(block, dict) else block
        return load_values(values)


def tensor(size, mode, **more):
    return dict(tensor=dict(size=size, mode=mode), **more)


def sharded(sequence, weight, **settings):
    return tensor(sequence, "isp", weight=dict(size=weight, **settings))


def pipeline(stages, schedule):
    return dict(pipeline=dict(size=stages, mode=schedule))


def mixture(ranks, *, weight=1, no_tp=False):
    """A mixture on so many ranks, whose weights are divided once more."""
    shared = dict(expert=dict(size=ranks, no_tp=no_tp), expert_weight=dict(size=weight, overlap=weight > 1))
    return dict(expert_zero1=dict(size=-1), **shared)


def experts(kind="Dropless", blocks=(), **options):
    """The model of a mixture of 4 experts, and ``blocks`` of the config."""
    model = dict(num_experts=4, top_k=2, num_shared_experts=1, mlp_ratio=1, moe_type=kind, moe_layer_kwargs=options)
    blocks = dict(blocks)
    return blocks | dict(model_type="INTERNLM_MoE", model=model | blocks.get("model", {}))


BY_BLOCK = dict(overlap=True, forward_overlap_per="layer")
BY_CALL = dict(overlap=True, forward_overlap_per="module")
FUSED = dict(layer_fuse_isp_comm=True)
OVERLAP = dict(hybrid_zero_optimizer=dict(overlap_sync_grad=True, overlap_sync_param=True, **SMALL_BUCKETS))
HALF = dict(model=dict(dtype="torch.bfloat16"))
FSDP = dict(zero1=dict(size=-1), fsdp=dict(enable=True))


def deep(layers, micro=1, **model):
    return dict(model=dict(num_layers=layers, **model), data=dict(micro_num=micro))


TWO_CHUNKS = dict(num_chunks=2)
GSHARD = dict(capacity_factor=0.75, min_capacity=1)
LATENT = dict(
    num_kv_attention_heads=4, q_lora_rank=12, kv_lora_rank=8, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=6
)
NO_LOSSES = dict(loss=dict(moe_loss_coeff=0.0))
GATED = dict(shared_expert_gate=True, scoring_func="sigmoid", bias_update_rate=0.01)

CASES = {
    "alone": Case(1),
    "dp2": Case(2),
    "dp2 zero2": Case(2, dict(zero1=dict(size=2)), dict(hybrid_zero_optimizer=SMALL_BUCKETS)),
    "dp2 zero2 micro2": Case(2, dict(zero1=dict(size=2)), dict(data=dict(micro_num=2))),
    "dp2 zero2 bfloat16": Case(2, dict(zero1=dict(size=2)), HALF | dict(use_fp32_norm=True)),
    "dp2 reduced in bfloat16": Case(2, dict(zero1=dict(size=2)), HALF | dict(reduce_comm_dtype="torch.bfloat16")),
    "dp4 zero2": Case(4, dict(zero1=dict(size=2)), OVERLAP),
    "dp4 zero4": Case(4, dict(zero1=dict(size=-1)), OVERLAP | LLAMA),
    **{
        f"{mode}2{name}": Case(2, tensor(2, mode), blocks)
        for mode in ("mtp", "msp", "fsp")
        for name, blocks in {
            "": {},
            " recompute half": dict(model=dict(checkpoint=0.5)),
            " recompute": dict(model=dict(checkpoint=1.0), data=dict(micro_num=2)) | LLAMA,
        }.items()
    },
    "mtp2 dp2 zero2": Case(4, tensor(2, "mtp", zero1=dict(size=2)), OVERLAP),
    "msp2 dp2 zero2 bfloat16": Case(4, tensor(2, "msp", zero1=dict(size=2)), HALF | OVERLAP),
    "fsp2 dp2 micro2": Case(4, tensor(2, "fsp"), dict(data=dict(micro_num=2)) | LLAMA),
    "mtp4 kv2": Case(4, tensor(4, "mtp")),
    "mtp2 dp2 zero2 head norms": Case(4, tensor(2, "mtp", zero1=dict(size=2)), OVERLAP | dict(model_type="QWEN3")),
    "msp2 norms behind products recompute": Case(
        2, tensor(2, "msp"), dict(model_type="GEMMA2", model=dict(checkpoint=1.0, final_logit_softcapping=3.0))
    ),
    "msp4 kv2 recompute": Case(4, tensor(4, "msp"), dict(model=dict(checkpoint=1.0)) | LLAMA),
    "fsp4 kv1": Case(4, tensor(4, "fsp"), dict(model=dict(num_kv_attention_heads=1, qkv_bias=True, mlp_bias=True))),
    "isp2 wp2": Case(2, sharded(2, 2)),
    "isp2 wp1 micro2": Case(2, sharded(2, 1), dict(data=dict(micro_num=2))),
    "isp4 wp2 kv2": Case(4, sharded(4, 2), LLAMA),
    "isp1 wp4": Case(4, sharded(1, 4)),
    "isp1 wp4 by block": Case(4, sharded(1, 4, **BY_BLOCK), OVERLAP),
    "isp2 wp2 dp2 zero2": Case(4, sharded(2, 2, **BY_BLOCK, **FUSED) | dict(zero1=dict(size=2)), OVERLAP),
    **{
        f"isp2 wp2 {name}": Case(2, sharded(2, 2, **settings), blocks)
        for name, settings, blocks in (
            ("by block", BY_BLOCK, {}),
            ("by call", BY_CALL, {}),
            ("by block fused", BY_BLOCK | FUSED, LLAMA),
            ("by call fused", BY_CALL | FUSED, LLAMA),
            ("fused", FUSED, LLAMA),
            ("recompute", {}, dict(model=dict(checkpoint=1.0))),
            ("by block recompute half", BY_BLOCK, dict(model=dict(checkpoint=0.5))),
            ("by call recompute", BY_CALL, dict(model=dict(checkpoint=1.0), data=dict(micro_num=2))),
            ("selective", {}, dict(model=dict(checkpoint=1.0), selective_checkpoint=True)),
            ("released late", BY_CALL | dict(early_reduce_scatter_release=False), {}),
        )
    },
    "pp2 1F1B": Case(2, pipeline(2, "1F1B"), deep(3, 3)),
    "pp2 1F1B residual": Case(2, pipeline(2, "1F1B"), deep(2, 2, dtype="torch.bfloat16", residual_in_fp32=True)),
    "pp2 interleaved": Case(2, pipeline(2, "1F1B"), deep(4, 4, **TWO_CHUNKS)),
    "pp2 ZBH1": Case(2, pipeline(2, "ZBH1"), deep(2, 3)),
    "pp2 dp2 zero2 tied": Case(
        4, pipeline(2, "1F1B") | dict(zero1=dict(size=2)), deep(2, 2, tie_word_embeddings=True) | OVERLAP
    ),
    "pp2 ZBV tied": Case(2, pipeline(2, "ZBV"), deep(4, 3, tie_word_embeddings=True)),
    "pp2 interleaved fsp2 recompute": Case(
        4, pipeline(2, "1F1B") | tensor(2, "fsp"), deep(5, 2, checkpoint=0.5, **TWO_CHUNKS)
    ),
    "pp2 ZBV isp2 wp2 by call": Case(4, pipeline(2, "ZBV") | sharded(2, 2, **BY_CALL), deep(4, 3, checkpoint=0.5)),
    "pp2 interleaved isp2 wp2 by block tied": Case(
        4,
        pipeline(2, "1F1B") | sharded(2, 2, **BY_BLOCK),
        deep(5, 2, tie_word_embeddings=True, **TWO_CHUNKS),
    ),
    "mtp2 latent attention": Case(2, tensor(2, "mtp"), deep(2, 2, **LATENT)),
    "fsp2 latent attention recompute": Case(2, tensor(2, "fsp"), deep(2, 1, checkpoint=0.5, **LATENT)),
    "msp2 further predictions recompute": Case(
        2, tensor(2, "msp"), experts(blocks=deep(2, 1, checkpoint=1.0, extra_pred_tokens=2))
    ),
    "pp2 isp2 wp2 further predictions": Case(
        4, pipeline(2, "1F1B") | sharded(2, 2, **BY_BLOCK), deep(2, 2, extra_pred_tokens=1)
    ),
    "ep2": Case(2, mixture(2), experts()),
    "ep2 mtp2 recompute": Case(4, mixture(2) | tensor(2, "mtp"), experts(blocks=deep(2, 1, checkpoint=0.5))),
    "ep2 msp2 recompute": Case(
        4, mixture(2) | tensor(2, "msp"), experts("GShard", deep(2, 2, checkpoint=1.0), **GSHARD)
    ),
    "ep2 fsp2 gated recompute": Case(
        4, mixture(2) | tensor(2, "fsp"), experts(blocks=deep(2, 1, checkpoint=1.0), **GATED)
    ),
    "ep2 no_tp mtp2": Case(
        2, mixture(2, no_tp=True) | tensor(2, "mtp"), experts(blocks=deep(2, 1, checkpoint=1.0, num_shared_experts=0))
    ),
    "ep4 no_tp msp2": Case(4, mixture(4, no_tp=True) | tensor(2, "msp"), experts("GShard", NO_LOSSES, **GSHARD)),
    "ep2 expert zero2": Case(4, mixture(2) | dict(zero1=dict(size=4)), experts(blocks=OVERLAP)),
    "isp2 ep2 ewp2": Case(4, mixture(2, weight=2) | sharded(2, 2, **BY_CALL), experts()),
    "isp4 ewp4 recompute": Case(
        4, mixture(1, weight=4) | sharded(4, 2), experts("GShard", deep(2, 1, checkpoint=1.0), **GSHARD)
    ),
    "pp2 ZBV ewp2": Case(
        4, mixture(1, weight=2) | pipeline(2, "ZBV") | sharded(2, 2), experts(blocks=deep(4, 3, checkpoint=0.5))
    ),
    "fsdp2": Case(2, FSDP, LLAMA | deep(2, 2)),
    "fsdp2 dp2 micro2": Case(4, FSDP | dict(zero1=dict(size=2)), LLAMA | deep(2, 2)),
    "fsdp2 dp2 bfloat16": Case(
        4,
        FSDP | dict(zero1=dict(size=2)),
        deep(2, 2, dtype="torch.bfloat16") | dict(reduce_comm_dtype="torch.bfloat16"),
    ),
    "fsdp2 msp2 recompute": Case(4, tensor(2, "msp", **FSDP), deep(2, 2, checkpoint=0.5)),
    "pp2 1F1B fsdp2": Case(4, pipeline(2, "1F1B") | FSDP, LLAMA | deep(3, 3)),
    "pp2 interleaved fsdp2 recompute": Case(
        4, pipeline(2, "1F1B") | FSDP, deep(4, 2, checkpoint=0.5, dtype="torch.bfloat16", **TWO_CHUNKS)
    ),
    "pp2 ZBV fsdp2 odd": Case(
        4,
        pipeline(2, "ZBV") | FSDP,
        LLAMA | deep(4, 3, hidden_size=24, mlp_ratio=1.1, multiple_of=3, vocab_size=63, dtype="torch.bfloat16"),
    ),
    "fsdp2 ep2": Case(2, mixture(2) | FSDP, experts()),
    "fsdp4 tied odd": Case(
        4, FSDP, LLAMA | deep(2, 1, tie_word_embeddings=True, hidden_size=24, num_kv_attention_heads=1)
    ),
}
