"""Mixtral 8x7B: 8 experts of width 14336, 2 per token, grouped queries 32/8."""

from evocore.config import read_base

with read_base():
    from configs._base_.moe_runtime import *

JOB_NAME = "8x7b_mixtral"
model_type = "MIXTRALMOE"

data = dict(data, seq_len=4096, micro_bsz=2, valid_every=50, total_steps=50000)

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
