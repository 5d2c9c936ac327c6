"""InternLM2 20B: grouped queries 48/8, feed-forward width 16384."""

model_type = "INTERNLM2"

model = dict(
    num_layers=48,
    hidden_size=6144,
    num_attention_heads=48,
    num_kv_attention_heads=8,
    mlp_ratio=8 / 3,
    vocab_size=92544,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=1000000,
    qk_interleaved=False,
    checkpoint=0.2,
    dtype="torch.bfloat16",
)
