"""Intern sequence parallelism: sequences split over 2 ranks, weights over 4, independent of each other.

The model is InternLM2-like (GQA-8) with InternLM's vocabulary and feed-forward width 11008: no published model.
"""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "7b_isp_train"
model_type = "INTERNLM2"

data = dict(data, micro_bsz=2, valid_every=50, total_steps=50000)

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    mlp_ratio=8 / 3,
    vocab_size=103168,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(
    parallel,
    tensor=dict(size=2, mode="isp"),
    weight=dict(size=4, overlap=True, launch_allgather_before="wo", forward_overlap_per="layer"),
    sequence_2D=dict(
        enable=False,
        head_size=2,
        context_size=4,
        window_size=1,
        device_placement_strategy=dict(head_first=True, interleaved=False),
    ),
)
