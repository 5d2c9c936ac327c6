"""Llama 3.1 8B: grouped queries 32/8, rotary angles stretched from 8192 positions to 131072."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "8b_llama3_train"
model_type = "LLAMA3"

data = dict(data, seq_len=4096)

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    mlp_ratio=3.5,
    vocab_size=128256,
    max_position_embeddings=131072,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=500000,
    rope_type="llama3",
    rope_scaling_factor=8,
    rope_kwargs=dict(original_max_position_embeddings=8192, low_freq_factor=1, high_freq_factor=4),
    qk_interleaved=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)
