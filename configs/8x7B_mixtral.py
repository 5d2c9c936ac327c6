"""Mixtral 8x7B: 8 experts of width 14336, 2 per token, grouped queries 32/8."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "8x7b_mixtral"
model_type = "MIXTRALMOE"

data = dict(
    seq_len=4096,
    micro_num=4,
    micro_bsz=2,
    valid_micro_num=4,
    valid_every=50,
    pack_sample_into_one=False,
    total_steps=50000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)

hybrid_zero_optimizer = dict(overlap_sync_grad=False, clip_grad_norm=1.0)

loss = dict(label_smoothing=0, moe_loss_coeff=0.02)

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    mlp_ratio=3.5,
    vocab_size=32000,
    max_position_embeddings=32768,
    qkv_bias=False,
    o_bias=False,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=1000000,
    qk_interleaved=False,
    use_sliding_window=False,
    moe_type="GShard",
    num_experts=8,
    top_k=2,
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(
    zero1=dict(size=-1),
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
    expert=dict(size=-1, no_tp=False),
    expert_weight=dict(size=1, overlap=True),
)
