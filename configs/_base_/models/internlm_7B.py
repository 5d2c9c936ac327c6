"""InternLM 7B: 32 query and 32 key-value heads, biases on the attention projections, feed-forward width 11008."""

model_type = "INTERNLM"

model = dict(
    num_layers=32,
    hidden_size=4096,
    num_attention_heads=32,
    num_kv_attention_heads=32,
    mlp_ratio=8 / 3,
    vocab_size=103168,
    qkv_bias=True,
    o_bias=True,
    norm_type="rmsnorm",
    layer_norm_epsilon=1e-5,
    rope_base=10000,
    qk_interleaved=False,
    embedding_init_std=0.0052,
    attn_wqkv_init_std=0.006,
    attn_other_init_std=0.0015,
    ffn_uplayer_init_std=0.006,
    ffn_other_init_std=0.0015,
    out_head_init_std=0.0052,
    checkpoint=False,
    dtype="torch.bfloat16",
)
