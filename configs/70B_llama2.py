"""Llama 2 70B: grouped queries 64/8, feed-forward width 28672; tensor 4 times pipeline 2 on 128 devices of 80 GB."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "70b_llama2_train"
model_type = "LLAMA2"

data = dict(
    seq_len=4096,
    micro_num=12,
    micro_bsz=4,
    valid_micro_num=4,
    valid_every=50,
    pack_sample_into_one=False,
    total_steps=50000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)

model = dict(
    num_layers=80,
    hidden_size=8192,
    num_attention_heads=64,
    num_kv_attention_heads=8,
    mlp_ratio=3.5,
    vocab_size=32000,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    checkpoint=True,
    dtype="torch.bfloat16",
)

parallel = dict(
    zero1=dict(size=-1),
    tensor=dict(size=4, mode="mtp"),
    pipeline=dict(size=2, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
)
