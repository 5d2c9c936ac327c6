"""A Llama of 30 billion parameters (LLaMA-1's shape, feed-forward width 17920): tensor 4 times pipeline 4."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "30b_llama2_train"
model_type = "LLAMA2"

data = dict(
    seq_len=2048,
    micro_num=4,
    micro_bsz=1,
    valid_micro_num=4,
    valid_every=0,
    pack_sample_into_one=False,
    total_steps=2000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)

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
    zero1=dict(size=-1),
    tensor=dict(size=4, mode="mtp"),
    pipeline=dict(size=4, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
)
