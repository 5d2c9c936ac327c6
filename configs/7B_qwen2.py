"""Qwen2 7B: biases on query, key and value only, feed-forward width 18944, sliding window off."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "7b_qwen2_train"
model_type = "QWEN2"

model = dict(
    num_layers=28,
    hidden_size=3584,
    num_attention_heads=28,
    num_kv_attention_heads=4,
    mlp_ratio=5.25,
    vocab_size=152064,
    qkv_bias=True,
    o_bias=False,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    rope_base=1000000,
    qk_interleaved=False,
    use_sliding_window=False,
    sliding_window=32768,
    max_window_layers=28,
    checkpoint=False,
    dtype="torch.bfloat16",
)
