"""Gemma 7B: heads of width 256, norm with unit offset, GeGLU, 256000 tokens; the published head is tied."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "7b_gemma_train"
model_type = "GEMMA"

data = dict(
    seq_len=2048,
    micro_num=4,
    micro_bsz=1,
    valid_micro_num=4,
    valid_every=0,
    pack_sample_into_one=False,
    total_steps=20000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)

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
