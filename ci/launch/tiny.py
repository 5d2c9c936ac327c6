"""Two tiny layers on random tokens, for checks of launchers: what matters is that losses are the same."""

JOB_NAME = "tiny"
model_type = "LLAMA2"
enable_tb = False
data = dict(seq_len=32, micro_bsz=1, micro_num=2, total_steps=8)
model = dict(vocab_size=64, hidden_size=32, num_layers=2, num_attention_heads=2, mlp_ratio=2, dtype="torch.float32")
parallel = dict(zero1=dict(size=1))
hybrid_zero_optimizer = dict(clip_grad_norm=1.0)
adam = dict(lr=1e-3)
ckpt = dict(checkpoint_every=2, keep_last=2)
