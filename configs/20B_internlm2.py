"""InternLM2 20B: tensor parallel 2 in mode fsp, optimizer state shared by 16 ranks."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *
    from configs._base_.models.internlm2_20B import *

JOB_NAME = "20b_internlm2_train"

parallel = dict(
    parallel,
    zero1=dict(size=16),
    tensor=dict(size=2, mode="fsp"),
)
