"""Gemma 7B: heads of width 256, norm with unit offset, GeGLU, 256000 tokens; the published head is tied."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "7b_gemma_train"
model_type = "GEMMA"

model = dict(
    num_layers=28,
    hidden_size=3072,
    num_attention_heads=16,
    num_kv_attention_heads=16,
    head_dim=256,
    mlp_ratio=8,
    vocab_size=256000,
    max_position_embeddings=8192,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    add_unit_offset=True,
    use_swiglu=False,
    rope_base=10000,
    qk_interleaved=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)
