"""Llama 2 70B: grouped queries 64/8, feed-forward width 28672; tensor 4 times pipeline 2 on 128 devices of 80 GB."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "70b_llama2_train"
model_type = "LLAMA2"

data = dict(data, seq_len=4096, micro_num=12, micro_bsz=4, valid_every=50, total_steps=50000)

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
    parallel,
    tensor=dict(size=4, mode="mtp"),
    pipeline=dict(size=2, interleaved_overlap=True),
)
