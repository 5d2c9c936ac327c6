"""InternLM2 7B with rotary base 10000 and split rotary pairs, as InternEvo's example has it.

The published InternLM2 7B has rotary base 1000000: see ``_base_/models/internlm2_7B.py``.
"""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251
    from configs._base_.models.internlm2_7B import model, model_type  # noqa: F401, TID251

JOB_NAME = "7b_internlm2_train"

model = dict(model, rope_base=10000, qk_interleaved=False, checkpoint=False)

data = dict(
    seq_len=2048,
    micro_num=4,
    micro_bsz=1,
    valid_micro_num=4,
    valid_every=0,
    pack_sample_into_one=False,
    total_steps=20000,
    min_length=50,
    train_folder=None,
    valid_folder=None,
)
