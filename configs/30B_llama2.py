"""A Llama of 30 billion parameters (LLaMA-1's shape, feed-forward width 17920): tensor 4 times pipeline 4."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "30b_llama2_train"
model_type = "LLAMA2"

data = dict(data, total_steps=2000)

model = dict(
    num_layers=60,
    hidden_size=6656,
    num_attention_heads=52,
    num_kv_attention_heads=52,
    mlp_ratio=2.6875,
    vocab_size=32000,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    mlp_layer_fusion=True,
    enable_qkv_fusion=True,
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(
    parallel,
    tensor=dict(size=4, mode="mtp"),
    pipeline=dict(size=4, interleaved_overlap=True),
)
