"""InternEvo's "7B Llama 2": GQA-8 and feed-forward width 14336, so not Meta's Llama-2-7B (32 kv heads, 11008)."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "7b_llama2_train"
model_type = "LLAMA2"

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
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    mlp_ratio=3.5,
    vocab_size=32000,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    checkpoint=False,
    dtype="torch.bfloat16",
)
