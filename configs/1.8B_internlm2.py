"""InternLM2 1.8B: optimizer state shared by the 8 ranks of a node."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *
    from configs._base_.models.internlm2_1B import *

JOB_NAME = "1.8b_internlm2_train"

parallel = dict(
    parallel,
    zero1=dict(size=8),
)
