"""DeepSeek-V3: latent attention, 256 experts of width 2048 in 8 groups, 8 per token and one shared, one more token.

Divided as it was trained (DeepSeek-AI, 2024, section 3.2): 16 pipeline stages, experts over 64 ranks of each.
"""

from evocore.config import read_base

with read_base():
    from configs._base_.moe_runtime import *

JOB_NAME = "671b_deepseek_v3"
model_type = "DEEPSEEK_V3"

data = dict(data, seq_len=4096, micro_bsz=1, micro_num=32, valid_every=50, total_steps=50000)

loss = dict(label_smoothing=0, moe_loss_coeff=0.0001, mtp_loss_coeff=0.3)

model = dict(
    num_layers=61,
    hidden_size=7168,
    num_attention_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    mlp_ratio=18432 / 7168,
    vocab_size=129280,
    max_position_embeddings=4096,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-6,
    rope_base=10000,
    qk_interleaved=True,
    moe_type="Dropless",
    num_experts=256,
    top_k=8,
    num_shared_experts=1,
    moe_intermediate_size=2048,
    first_k_dense_replace=3,
    moe_layer_kwargs=dict(
        scoring_func="sigmoid",
        num_expert_groups=8,
        top_k_groups=4,
        routed_scaling_factor=2.5,
        bias_update_rate=0.001,
    ),
    extra_pred_tokens=1,
    checkpoint=True,
    dtype="torch.bfloat16",
)

parallel = dict(
    parallel,
    pipeline=dict(size=16, mode="ZBV"),
    expert=dict(size=64, no_tp=False),
)
