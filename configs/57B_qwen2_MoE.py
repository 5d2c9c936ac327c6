"""Qwen2-57B-A14B: 64 experts of width 2560, 8 per token, and 8 shared ones that act as one of width 20480."""

from evocore.config import read_base

with read_base():
    from configs._base_.moe_runtime import *

JOB_NAME = "57b_qwen2_moe"
model_type = "QWEN2MOE"

data = dict(data, seq_len=4096, micro_bsz=2, valid_every=50, total_steps=50000)

loss = dict(label_smoothing=0, moe_loss_coeff=0.001)

model = dict(
    num_layers=28,
    hidden_size=3584,
    num_attention_heads=28,
    num_kv_attention_heads=4,
    mlp_ratio=5 / 7,
    vocab_size=151936,
    max_position_embeddings=131072,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    rope_base=1000000,
    qk_interleaved=False,
    use_sliding_window=False,
    moe_type="GShard",
    num_experts=64,
    num_shared_experts=8,
    top_k=8,
    checkpoint=False,
    dtype="torch.bfloat16",
)
