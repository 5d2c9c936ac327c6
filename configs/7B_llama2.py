"""InternEvo's "7B Llama 2": GQA-8 and feed-forward width 14336, so not Meta's Llama-2-7B (32 kv heads, 11008)."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *

JOB_NAME = "7b_llama2_train"
model_type = "LLAMA2"

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
