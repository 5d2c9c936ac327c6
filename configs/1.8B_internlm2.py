"""InternLM2 1.8B: optimizer state shared by the 8 ranks of a node."""

from evocore.config import read_base

with read_base():
    from configs._base_.default_runtime import *  # noqa: F403, TID251
    from configs._base_.models.internlm2_1B import *  # noqa: F403, TID251

JOB_NAME = "1.8b_internlm2_train"

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
    zero1=dict(size=8),
    tensor=dict(size=1, mode="mtp"),
    pipeline=dict(size=1, interleaved_overlap=True),
    weight=dict(size=1, overlap=True),
)
