"""Gemma 2 9B: heads of width 256, soft caps, every other layer with a window of 4096, tied head of 256000 tokens."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "9b_gemma2_train"
model_type = "GEMMA2"

data = dict(data, seq_len=8192)

model = dict(
    num_layers=42,
    hidden_size=3584,
    num_attention_heads=16,
    num_kv_attention_heads=8,
    head_dim=256,
    mlp_ratio=4,
    vocab_size=256000,
    max_position_embeddings=8192,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    use_sliding_window=True,
    sliding_window=4096,
    query_pre_attn_scalar=256,
    attn_logit_softcapping=50,
    final_logit_softcapping=30,
    rope_base=10000,
    qk_interleaved=False,
    checkpoint=True,
    dtype="torch.bfloat16",
)
