"""InternLM2 7B with rotary base 10000 and split rotary pairs, as InternEvo's example has it.

The published InternLM2 7B has rotary base 1000000: see ``_base_/models/internlm2_7B.py``.
"""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *
    from configs._base_.models.internlm2_7B import model, model_type

JOB_NAME = "7b_internlm2_train"

model = dict(model, rope_base=10000, qk_interleaved=False, checkpoint=False)
