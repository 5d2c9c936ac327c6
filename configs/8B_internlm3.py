"""InternLM3 8B: 2 key-value heads, rotary base 5e7, weights shared by 16 ranks (isp)."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "8b_internlm3_train"
model_type = "INTERNLM3"

data = dict(data, seq_len=4096, micro_num=1, micro_bsz=2)

model = dict(
    num_layers=48,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=2,
    mlp_ratio=2.5,
    vocab_size=128512,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=50000000,
    qk_interleaved=False,
    enable_qkv_fusion=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(
    parallel,
    zero1=dict(size=1),
    tensor=dict(size=1, mode="isp"),
    weight=dict(size=16, overlap=True, launch_allgather_before="wo", forward_overlap_per="module"),
)
