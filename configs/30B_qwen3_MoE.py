"""Qwen3-30B-A3B: 128 experts of width 768, 8 per token and none shared, behind attention with normalised heads."""

from evocore.config import read_base

with read_base():
    from configs._base_.moe_runtime import *

JOB_NAME = "30b_qwen3_moe"
model_type = "QWEN3MOE"

data = dict(data, seq_len=4096, micro_bsz=1, valid_every=50, total_steps=50000)

loss = dict(label_smoothing=0, moe_loss_coeff=0.001)

model = dict(
    num_layers=48,
    hidden_size=2048,
    num_attention_heads=32,
    num_kv_attention_heads=4,
    head_dim=128,
    mlp_ratio=3,
    moe_intermediate_size=768,
    vocab_size=151936,
    max_position_embeddings=40960,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    rope_base=1000000,
    qk_interleaved=False,
    moe_type="Dropless",
    num_experts=128,
    top_k=8,
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(
    parallel,
    tensor=dict(size=1, mode="isp"),
    weight=dict(size=8, overlap=True),
    expert=dict(size=8, no_tp=False),
    expert_weight=dict(size=2, overlap=True),
)
