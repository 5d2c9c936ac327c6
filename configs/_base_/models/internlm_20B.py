"""InternLM 20B: 60 layers, feed-forward width 13824.

InternEvo's attention always has both biases; the published Hugging Face weights have none.
"""

model_type = "INTERNLM"

model = dict(
    num_layers=60,
    hidden_size=5120,
    num_attention_heads=40,
    num_kv_attention_heads=40,
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
