"""Qwen3 8B: queries and keys normalised head by head, grouped queries 32/8, feed-forward width 12288."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "8b_qwen3_train"
model_type = "QWEN3"

data = dict(data, seq_len=4096)

model = dict(
    num_layers=36,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    head_dim=128,
    mlp_ratio=3,
    vocab_size=151936,
    max_position_embeddings=40960,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    rope_base=1000000,
    qk_interleaved=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)
