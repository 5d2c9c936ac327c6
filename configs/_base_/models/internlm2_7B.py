"""InternLM2 7B: grouped queries 32/8, feed-forward width 14336."""

model_type = "INTERNLM2"

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=8,
    mlp_ratio=3.5,
    vocab_size=92544,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=1000000,
    qk_interleaved=True,
    checkpoint=0.2,
    dtype="torch.bfloat16",
)
