"""Baichuan2 7B: one fused query-key-value matrix, normalised output head, feed-forward width 11008."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "7b_baichuan2_train"
model_type = "BAICHUAN2"

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=32,
    mlp_ratio=8 / 3,
    vocab_size=125696,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    norm_head=True,
    rope_base=10000,
    qk_interleaved=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)
