"""InternLM-MoE with 4 experts of width 5632, 2 per token, capacity 1.0 (GShard): an example, no published model."""

from evocore.config import read_base

with read_base():
    from configs._base_.moe_runtime import *

JOB_NAME = "7b_moe_train"
model_type = "INTERNLM_MoE"

data = dict(data, micro_bsz=2, valid_every=50, total_steps=50000)

loss = dict(label_smoothing=0, moe_loss_coeff=0.1)

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=32,
    mlp_ratio=4 / 3,
    vocab_size=103168,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    moe_type="GShard",
    num_experts=4,
    top_k=2,
    moe_layer_kwargs=dict(
        capacity_factor=1.0,
        eval_capacity_factor=1.0,
        min_capacity=4,
        noisy_gate_policy=None,
        drop_tokens=True,
        use_rts=True,
        use_fused_gating=False,
    ),
    checkpoint=False,
    dtype="torch.bfloat16",
)

parallel = dict(parallel, expert_zero1=dict(size=-1))
