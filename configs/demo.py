"""A small InternLM2 that trains on the Python standard library in a few minutes on any machine: ``evocore demo``."""

import sysconfig

JOB_NAME = "demo"
model_type = "INTERNLM2"
seed = 1024

data = dict(
    seq_len=256,
    micro_bsz=2,
    micro_num=1,
    total_steps=380,
    valid_every=380,
    valid_max_packs=60,
    pack_sample_into_one=False,
    min_length=0,
    train_folder="runs/demo-data/train",
    valid_folder="runs/demo-data/valid",
    tokenizer_path="runs/demo-data/tokenizer.model",
    raw=dict(
        sources=[sysconfig.get_path("stdlib")],
        suffixes=[".py"],
        exclude=["site-packages", "test", "tests", "idlelib", "lib2to3"],
        vocab_size=384,
        valid_fraction=0.01,
    ),
)

model = dict(
    num_layers=6,
    hidden_size=384,
    num_attention_heads=6,
    num_kv_attention_heads=3,
    mlp_ratio=8 / 3,
    multiple_of=64,
    vocab_size=384,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    qk_interleaved=False,
    dtype="auto",
)

parallel = dict(zero1=dict(size=1))

hybrid_zero_optimizer = dict(clip_grad_norm=1.0)

adam = dict(lr=3e-3, adam_beta1=0.9, adam_beta2=0.95, adam_eps=1e-8, weight_decay=0.1)

lr_scheduler = dict(warmup_ratio=0.05, eta_min=3e-4)

ckpt = dict(enable_save_ckpt=True, checkpoint_every=100, keep_last=2)
