"""InternLM-MoE with 16 experts of width 1536 and about 1.8 billion parameters: an example, no published model."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251

JOB_NAME = "1.8b_moe_train"
model_type = "INTERNLM_MoE"

data = dict(
    seq_len=2048,
    micro_num=4,
    micro_bsz=2,
    valid_micro_num=4,
    valid_every=5000,
    pack_sample_into_one=False,
    total_steps=5000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)

hybrid_zero_optimizer = dict(overlap_sync_grad=False, clip_grad_norm=1.0)

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

parallel = dict(
    zero1=dict(size=-1),
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
    expert=dict(size=-1, no_tp=False),
    expert_weight=dict(size=1, overlap=True),
    expert_zero1=dict(size=-1),
)
