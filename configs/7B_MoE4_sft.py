"""InternLM-MoE with 4 experts of width 5632, 2 per token, capacity 1.0 (GShard): an example, no published model."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "7b_moe_train"
model_type = "INTERNLM_MoE"

data = dict(
    seq_len=2048,
    micro_num=4,
    micro_bsz=2,
    valid_micro_num=4,
    valid_every=50,
    pack_sample_into_one=False,
    total_steps=50000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)

hybrid_zero_optimizer = dict(overlap_sync_grad=False, clip_grad_norm=1.0)

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

parallel = dict(
    zero1=dict(size=-1),
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
    expert=dict(size=-1, no_tp=False),
    expert_weight=dict(size=1, overlap=True),
    expert_zero1=dict(size=-1),
)
