"""InternLM2 1.8B ("1B" in InternEvo): grouped queries 16/8, feed-forward width 8192, normalised output head."""

model_type = "INTERNLM2"

model = dict(
    num_layers=24,
    hidden_size=2048,
    num_attention_heads=16,
    num_kv_attention_heads=8,
    mlp_ratio=4,
    multiple_of=128,
    vocab_size=92544,
    no_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    norm_head=True,
    rope_base=1000000,
    qk_interleaved=False,
    checkpoint=0.2,
    dtype="torch.bfloat16",
)
