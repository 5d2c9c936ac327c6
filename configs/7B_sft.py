"""InternLM 7B, InternEvo's basic example: ZeRO over all data-parallel ranks, random data until folders are given."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *
    from configs._base_.models.internlm_7B import *

JOB_NAME = "7b_train"

data = dict(data, micro_bsz=2, valid_every=50, total_steps=50000)
