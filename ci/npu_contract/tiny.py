"""A tiny model on random tokens in float32, so that devices and layouts can be compared step by step."""

JOB_NAME = "npu-contract"
model_type = "INTERNLM2"
seed = 7

data = dict(type="random", seq_len=64, micro_bsz=1, micro_num=2, total_steps=8)

model = dict(
    num_layers=2,
    hidden_size=64,
    num_attention_heads=4,
    num_kv_attention_heads=2,
    mlp_ratio=2.0,
    multiple_of=16,
    vocab_size=128,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    qk_interleaved=False,
    dtype="torch.float32",
)

parallel = dict(zero1=dict(size=1))

hybrid_zero_optimizer = dict(clip_grad_norm=1.0)

adam = dict(lr=3e-3, adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-8, weight_decay=0.1)

lr_scheduler = dict(warmup_ratio=0.0, eta_min=3e-4)

ckpt = dict(enable_save_ckpt=False)
