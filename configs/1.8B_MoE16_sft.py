"""InternLM-MoE with 16 experts of width 1536 and about 1.8 billion parameters: an example, no published model."""

from evocore.config import read_base

with read_base():
    from configs._base_.moe_runtime import *

JOB_NAME = "1.8b_moe_train"
model_type = "INTERNLM_MoE"

data = dict(data, micro_bsz=2, valid_every=5000, total_steps=5000)

loss = dict(label_smoothing=0, moe_loss_coeff=0.1)

model = dict(
    num_layers=24,
    hidden_size=1024,
    num_attention_heads=16,
    num_kv_attention_heads=16,
    mlp_ratio=1.5,
    multiple_of=128,
    vocab_size=92544,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    parallel_output=False,
    moe_type="GShard",
    num_experts=16,
    num_shared_experts=0,
    top_k=2,
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(parallel, expert_zero1=dict(size=-1))
