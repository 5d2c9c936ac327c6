"""InternLM2 20B: tensor parallel 2 in mode fsp, optimizer state shared by 16 ranks."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251
    from configs._base_.models.internlm2_20B import *  # noqa: F403, TID251

JOB_NAME = "20b_internlm2_train"

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

parallel = dict(
    zero1=dict(size=16),
    tensor=dict(size=2, mode="fsp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
)
